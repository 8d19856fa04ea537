"""Checkpoint manager for the train state: the chief writes and reads files, all processes get the values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.spec import RunSpec
from trainer.storage.local import prepare_folder
from trainer.training.async_checkpointer import AsyncCheckpointer
from trainer.training.checkpoint import (
    delete_newer,
    list_bests,
    list_checkpoints,
    restore_best,
    restore_newest,
)
from trainer.training.history import History
from trainer.training.host_sync import HostSync
from trainer.training.learner import Learner
from trainer.training.state import TrainState, best_of


class CheckpointManager:
    """Saves and restores checkpoints; every process calls it at the same points of the training."""

    def __init__(
        self,
        learner: Learner,
        checkpointer: AsyncCheckpointer,
        sync: HostSync,
        on_damage: Callable[[str], None],
    ) -> None:
        self._learner, self._checkpointer, self._sync = learner, checkpointer, sync
        self._on_damage = on_damage

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return self._checkpointer.folder

    def resume_advice(self) -> str:
        """Return a sentence on where a restart resumes; see `AsyncCheckpointer.resume_advice`."""
        return self._checkpointer.resume_advice()

    def prepare(self) -> None:
        """Create the folder and check that it is writable. Raises what `prepare_folder` raises."""
        prepare_folder(self.folder)

    def restore(self, whole_epochs: bool = False) -> Mapping[str, Any] | None:
        """Restore the newest checkpoint on all processes; return its record, or None if there is none."""
        variables, record = self._learner.variables(), None
        if self._sync.is_chief:
            record = restore_newest(self.folder, variables, whole_epochs, self._on_damage)
        result: Mapping[str, Any] | None = self._sync.broadcast_variables(variables, record)
        return result

    def restore_best(self, epoch: int) -> bool:
        """Restore the weights of the best epoch into the inference model; return False if they are lost."""
        variables, record = self._learner.inference_variables(), None
        if self._sync.is_chief and restore_best(self.folder, epoch, variables, self._on_damage):
            record = {"epoch": epoch}
        return self._sync.broadcast_variables(variables, record) is not None

    def restore_with_best(self) -> Mapping[str, Any] | None:
        """Restore the newest checkpoint whose best weights, if it has any, are readable; delete newer ones.

        Returns its record, or None if there is no such checkpoint.
        """
        variables, record = self._learner.variables(), None
        if self._sync.is_chief:
            usable = {0, *list_bests(self.folder)}
            record = restore_newest(
                self.folder, variables, is_wanted=lambda other: other["standing"]["best_epoch"] in usable
            )
            if record is not None:
                delete_newer(self.folder, record["standing"]["step"])
        result: Mapping[str, Any] | None = self._sync.broadcast_variables(variables, record)
        return result

    def list_bests(self) -> list[int]:
        """Return the epochs whose weights were saved as the best and are readable, oldest first."""
        epochs = list_bests(self.folder) if self._sync.is_chief else []
        return list(self._sync.broadcast(epochs))

    def save(
        self, state: TrainState, history: History, extra_seconds: float = 0.0, is_last: bool = False
    ) -> None:
        """Save the current state, adding `extra_seconds` to the elapsed seconds of `state`."""
        elapsed = state.elapsed_seconds + extra_seconds
        record = {
            "standing": replace(state, elapsed_seconds=elapsed).record(),
            "history": history.record(),
        }
        whole = state.step == len(history) * self._learner.steps_per_epoch
        if self._sync.is_chief:
            self._checkpointer.save(state.step, self._learner.variables(), record, whole, is_last)

    def save_best(self, epoch: int) -> None:
        """Save the weights of the best epoch so far."""
        if self._sync.is_chief:
            self._checkpointer.save_best(epoch, self._learner.inference_variables())

    def flush(self) -> bool:
        """Wait for all saves; return False if that takes too long. Raises the error of a failed save."""
        return bool(self._sync.broadcast(self._checkpointer.flush()))

    def delete_partial(self) -> None:
        """Delete the checkpoints from within the epoch that diverged; only the chief does.

        Another process on the same disk could delete a checkpoint that the chief has written since.
        """
        if not self._sync.is_chief:
            return
        whole = list_checkpoints(self.folder, whole_epochs=True)
        for path in list_checkpoints(self.folder):
            if path not in whole:
                path.unlink(missing_ok=True)


class BestEpoch:
    """Fills the inference model with the weights to keep, with fallbacks for a lost best epoch."""

    def __init__(
        self,
        learner: Learner,
        checkpoints: CheckpointManager,
        history: History,
        spec: RunSpec,
        held_out: str,
        on_message: Callable[[str], None],
    ) -> None:
        self._learner, self._checkpoints, self._history = learner, checkpoints, history
        self._spec, self._held_out, self._on_message = spec, held_out, on_message

    def fill(self, state: TrainState) -> Mapping[str, Any] | None:
        """Fill the inference model with the weights to keep: those of the best epoch, or the current ones.

        Returns None if the model is filled. If the weights of the best epoch are lost, restores an earlier
        checkpoint from before that epoch and returns its record; training must then continue from there.
        Without such a checkpoint, the best of the epochs with available weights is used.
        """
        lost = state.best_epoch
        if not (self._spec.train.keeps_best and lost):
            self._learner.fill_inference_model()
            return None
        if self._checkpoints.restore_best(lost):
            return None
        problem = f"The weights of epoch {lost}, the best so far, are lost"
        record = self._checkpoints.restore_with_best()
        if record is not None:
            step = record["standing"]["step"]
            self._on_message(f"{problem}: training continues from step {step}, before that epoch")
            return record
        self._choose(state)
        best = state.best_epoch
        replacement = (
            f"epoch {best} is the best that is left" if best else "no epoch with saved weights is left"
        )
        self._on_message(f"{problem}: {replacement}")
        return self.fill(state)

    def _choose(self, state: TrainState) -> None:
        """Mark the best of the epochs whose weights are available: saved as a best before, or current."""
        epochs = len(self._history)
        now = epochs if state.step == epochs * self._learner.steps_per_epoch else 0
        stopping, available = self._spec.train.early_stopping, {now, *self._checkpoints.list_bests()}
        best = best_of(self._history.results, available, self._held_out, stopping)
        state.best_epoch, state.best_score = best
        if now and best[0] == now:
            self._learner.fill_inference_model()
            self._checkpoints.save_best(now)
            self._checkpoints.flush()
