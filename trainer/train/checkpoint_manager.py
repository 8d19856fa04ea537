"""Checkpoint manager for the train state: the chief writes and reads files, all processes get the values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.storage.local import prepare_folder
from trainer.train.agreement import HostSync
from trainer.train.async_checkpointer import AsyncCheckpointer
from trainer.train.checkpoint import (
    forget_newer,
    list_bests,
    list_checkpoints,
    restore_best,
    restore_newest,
)
from trainer.train.history import History
from trainer.train.learner import Learner
from trainer.train.state import TrainState


class CheckpointManager:
    """Saves and restores checkpoints; every process calls it at the same points of the training."""

    def __init__(
        self,
        learner: Learner,
        saver: AsyncCheckpointer,
        agreement: HostSync,
        on_damage: Callable[[str], None],
    ) -> None:
        self._learner, self._saver, self._agreement = learner, saver, agreement
        self._on_damage = on_damage

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return self._saver.folder

    def resume_advice(self) -> str:
        """Return a sentence on where a restart resumes; see `AsyncCheckpointer.resume_advice`."""
        return self._saver.resume_advice()

    def prepare(self) -> None:
        """Create the folder and check that it is writable. Raises what `prepare_folder` raises."""
        prepare_folder(self.folder)

    def restore(self, whole_epochs: bool = False) -> Mapping[str, Any] | None:
        """Restore the newest checkpoint on all processes; return its record, or None if there is none."""
        variables, record = self._learner.variables(), None
        if self._agreement.is_chief:
            record = restore_newest(self.folder, variables, whole_epochs, self._on_damage)
        found: Mapping[str, Any] | None = self._agreement.broadcast_variables(variables, record)
        return found

    def restore_best(self, epoch: int) -> bool:
        """Restore the weights of the best epoch into the inference model; return False if they are lost."""
        answering, record = self._learner.answering_variables(), None
        if self._agreement.is_chief and restore_best(self.folder, epoch, answering, self._on_damage):
            record = {"epoch": epoch}
        return self._agreement.broadcast_variables(answering, record) is not None

    def restore_with_best(self) -> Mapping[str, Any] | None:
        """Restore the newest checkpoint whose best weights, if it has any, are readable; delete newer ones.

        Returns its record, or None if there is no such checkpoint.
        """
        variables, record = self._learner.variables(), None
        if self._agreement.is_chief:
            usable = {0, *list_bests(self.folder)}
            record = restore_newest(
                self.folder, variables, is_wanted=lambda each: each["standing"]["best_epoch"] in usable
            )
            if record is not None:
                forget_newer(self.folder, record["standing"]["step"])
        found: Mapping[str, Any] | None = self._agreement.broadcast_variables(variables, record)
        return found

    def bests(self) -> list[int]:
        """Return the epochs whose weights were saved as the best and are readable, oldest first."""
        mine = list_bests(self.folder) if self._agreement.is_chief else []
        return list(self._agreement.broadcast(mine))

    def save(
        self, standing: TrainState, history: History, more_seconds: float = 0.0, is_last: bool = False
    ) -> None:
        """Save the current state, adding `more_seconds` to the elapsed seconds of `standing`."""
        elapsed = standing.elapsed_seconds + more_seconds
        record = {
            "standing": replace(standing, elapsed_seconds=elapsed).record(),
            "history": history.record(),
        }
        whole = standing.step == len(history) * self._learner.steps_per_epoch
        if self._agreement.is_chief:
            self._saver.save(standing.step, self._learner.variables(), record, whole, is_last)

    def save_best(self, epoch: int) -> None:
        """Save the weights of the best epoch so far."""
        if self._agreement.is_chief:
            self._saver.save_best(epoch, self._learner.answering_variables())

    def flush(self) -> bool:
        """Wait for all saves; return False if that takes too long. Raises the error of a failed save."""
        return bool(self._agreement.broadcast(self._saver.flush()))

    def forget_parts(self) -> None:
        """Delete the checkpoints from within the epoch that diverged; only the chief does.

        Another process on the same disk could delete a checkpoint that the chief has written since.
        """
        if not self._agreement.is_chief:
            return
        whole = list_checkpoints(self.folder, whole_epochs=True)
        for path in list_checkpoints(self.folder):
            if path not in whole:
                path.unlink(missing_ok=True)
