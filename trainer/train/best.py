"""Selection of the best epoch, whose weights the run keeps if the spec requests it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trainer.spec import RunSpec
from trainer.train.checkpoint_manager import CheckpointManager
from trainer.train.history import History
from trainer.train.learner import Learner
from trainer.train.state import TrainState, best_of


class BestEpoch:
    """Fills the inference model with the weights to keep, with fallbacks for a lost best epoch."""

    def __init__(
        self,
        learner: Learner,
        keeper: CheckpointManager,
        history: History,
        spec: RunSpec,
        held_out: str,
        on_message: Callable[[str], None],
    ) -> None:
        self._learner, self._keeper, self._history = learner, keeper, history
        self._spec, self._held_out, self._on_message = spec, held_out, on_message

    def fill(self, standing: TrainState) -> Mapping[str, Any] | None:
        """Fill the inference model with the weights to keep: those of the best epoch, or the current ones.

        Returns None if the model is filled. If the weights of the best epoch are lost, restores an earlier
        checkpoint from before that epoch and returns its record; training must then continue from there.
        Without such a checkpoint, the best of the epochs with available weights is used.
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

    def _choose(self, standing: TrainState) -> None:
        """Mark the best of the epochs whose weights are available: saved as a best before, or current."""
        epochs = len(self._history)
        now = epochs if standing.step == epochs * self._learner.steps_per_epoch else 0
        stopping, at_hand = self._spec.train.early_stopping, {now, *self._keeper.bests()}
        best = best_of(self._history.results, at_hand, self._held_out, stopping)
        standing.best_epoch, standing.best_score = best
        if now and best[0] == now:
            self._learner.fill_inference_model()
            self._keeper.save_best(now)
            self._keeper.flush()
