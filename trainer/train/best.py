"""The best epoch of a training: its weights are what the run keeps, where the spec says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trainer.spec import RunSpec
from trainer.train.history import History
from trainer.train.keeper import Keeper
from trainer.train.learner import Learner
from trainer.train.progress import Standing, best_of


class BestEpoch:
    """Fills the inference model with the weights to keep, also where those of the best epoch are lost."""

    def __init__(
        self,
        learner: Learner,
        keeper: Keeper,
        history: History,
        spec: RunSpec,
        held_out: str,
        on_message: Callable[[str], None],
    ) -> None:
        self._learner, self._keeper, self._history = learner, keeper, history
        self._spec, self._held_out, self._on_message = spec, held_out, on_message

    def fill(self, standing: Standing) -> Mapping[str, Any] | None:
        """Fill the inference model with the weights that the run is to keep.

        Returns None, or the record of an earlier checkpoint whose values are in the variables now: the best
        weights are lost, and training goes on from there, which is before that epoch.
        """
        lost = standing.best_epoch
        if not (self._spec.train.keeps_best and lost):
            self._learner.fill_inference_model()
            return None
        if self._keeper.restore_best(lost):
            return None
        reported = f"the weights of epoch {lost}, the best so far, are lost"
        record = self._keeper.restore_with_best()
        if record is not None:
            step = record["standing"]["step"]
            self._on_message(f"{reported}: going back to step {step}, which is before it")
            return record
        self._choose(standing)
        self._on_message(f"{reported}: epoch {standing.best_epoch or 'none'} takes its place")
        return self.fill(standing)

    def _choose(self, standing: Standing) -> None:
        """Mark as the best epoch one whose weights are at hand: saved as the best once, or the current
        ones."""
        epochs = len(self._history)
        now = epochs if standing.step == epochs * self._learner.steps_per_epoch else 0
        stopping, at_hand = self._spec.train.early_stopping, {now, *self._keeper.bests()}
        best = best_of(self._history.results, at_hand, self._held_out, stopping)
        standing.best_epoch, standing.best_score = best
        if now and best[0] == now:
            self._learner.fill_inference_model()
            self._keeper.save_best(now)
            self._keeper.flush()
