"""Saving and restoring of checkpoints during training.

`AsyncCheckpointer` saves in a thread and `CheckpointPolicy` decides when. `CheckpointManager` saves on the
chief and restores on all processes. `BestEpoch` fills the model with the weights to keep.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.spec import CheckpointSpec, RunSpec
from trainer.storage.local import prepare_folder
from trainer.training.checkpoint import (
    delete_newer,
    list_bests,
    list_checkpoints,
    restore_best,
    restore_newest,
    save_best,
    save_checkpoint,
    take_snapshot,
)
from trainer.training.history import History
from trainer.training.host_sync import HostSync
from trainer.training.learner import Learner
from trainer.training.state import TrainState, best_of

# One save in progress and one waiting: each has a copy of the state in memory until it is on disk.
_MAX_JOBS = 2
_POLL_SECONDS = 0.1


class AsyncCheckpointer:
    """Saves in the order of the calls; the next call raises the error of a failed save.

    No call waits once `is_overdue` returns True.
    """

    def __init__(
        self,
        folder: Path,
        after_save: Callable[[], None] = lambda: None,
        is_overdue: Callable[[], bool] = lambda: False,
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self._after_save, self._is_overdue = folder, after_save, is_overdue
        self._before_save = before_save
        self._jobs: deque[tuple[Callable[[], object], bool]] = deque()
        """Jobs, each with whether a later checkpoint supersedes it; the first one is in progress."""
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self.safe_step: int | None = None
        """Last step whose checkpoint is complete, including its copy in a bucket; None if there is none."""
        self._is_closed = self._is_incomplete = False
        threading.Thread(target=self._run_jobs, daemon=True, name="checkpointer").start()

    def __enter__(self) -> AsyncCheckpointer:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let the thread end after the current save; drop all others and do not wait."""
        with self._changed:
            self._is_closed = True
            while len(self._jobs) > 1:
                self._jobs.pop()
            self._changed.notify_all()

    def save(
        self,
        step: int,
        variables: Mapping[str, tf.Variable],
        record: Mapping[str, Any],
        whole_epoch: bool,
        is_last: bool = False,
    ) -> None:
        """Save the current state; see `save_checkpoint`. `is_last` drops older saves not yet started."""
        arrays = take_snapshot(variables)
        if is_last:
            self._drop_waiting()

        def job() -> None:
            save_checkpoint(self.folder, step, arrays, record, whole_epoch)
            self._after_save()
            self.safe_step = step

        self._enqueue(job, is_superseded=True)

    def save_best(self, epoch: int, variables: Mapping[str, tf.Variable]) -> None:
        """Save the weights of the best epoch so far. Call before saving a checkpoint that refers to them."""
        arrays = take_snapshot(variables)

        def job() -> None:
            save_best(self.folder, epoch, arrays)
            self._after_save()  # must be complete before a checkpoint that refers to it

        self._enqueue(job, is_superseded=False)

    def resume_advice(self) -> str:
        """Return a sentence on where a restart resumes, by the newest complete checkpoint."""
        if self.safe_step is None:
            return "No checkpoint is complete; a restart begins with the first step."
        return f"Restart to resume from step {self.safe_step}."

    def flush(self) -> bool:
        """Wait for all saves; return False if that takes too long. Raises the error of a failed save."""
        with self._changed:
            return self._wait_until_left(0) and not self._is_incomplete

    def _drop_waiting(self) -> None:
        with self._changed:
            current, waiting = list(self._jobs)[:1], list(self._jobs)[1:]
            self._jobs = deque([*current, *(job for job in waiting if not job[1])])

    def _enqueue(self, job: Callable[[], object], is_superseded: bool) -> None:
        with self._changed:
            if self._wait_until_left(_MAX_JOBS - 1):
                self._jobs.append((job, is_superseded))
                self._changed.notify_all()
            else:
                self._is_incomplete = True

    def _wait_until_left(self, count: int) -> bool:
        """Wait until at most `count` saves are left; return False if that takes too long."""
        while len(self._jobs) > count and self._error is None:
            if self._is_overdue():
                return False
            self._changed.wait(_POLL_SECONDS)
        if self._error is not None:
            raise self._error
        return True

    def _run_jobs(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._is_closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                job, _ = self._jobs[0]
            try:
                if self._error is None:  # later saves may depend on one that failed
                    self._before_save()
                    job()
            except BaseException as error:  # raised again in the training thread
                self._error = error
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()


class CheckpointPolicy:
    """Policy for checkpoints within an epoch, in addition to those at its end.

    At most `every_steps` steps may be lost. A checkpoint therefore starts after half of them, and is written
    during the other half.
    """

    def __init__(self, spec: CheckpointSpec, checkpointer: AsyncCheckpointer) -> None:
        self._spec, self._checkpointer = spec, checkpointer
        self._last_step, self._last_time = 0, time.monotonic()
        self.max_steps = None if spec.every_steps is None else max(1, spec.every_steps // 2)
        """Maximum number of steps per call; None for no limit."""

    def record_resume(self, step: int) -> None:
        """Restart the count of steps and minutes at the checkpoint of `step`, which is complete."""
        self._checkpointer.safe_step = step
        self.record_save(step)

    def record_save(self, step: int) -> None:
        """Restart the count of steps and minutes at `step`."""
        self._last_step, self._last_time = step, time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether the configured minutes or steps have passed since the last checkpoint."""
        if self.max_steps is not None and step - self._last_step >= self.max_steps:
            return True
        return self._spec.every_minutes is not None and (
            time.monotonic() - self._last_time >= 60.0 * self._spec.every_minutes
        )

    def wait_for_saves(self, step: int) -> None:
        """Wait before the steps up to `step` if more than `every_steps` steps could be lost after them."""
        if (
            self._spec.every_steps is not None
            and step - (self._checkpointer.safe_step or 0) > self._spec.every_steps
        ):
            self._checkpointer.flush()


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
