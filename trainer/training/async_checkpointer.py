"""Asynchronous checkpointer.

The caller's thread copies the variables. A background thread writes the checkpoint files in order, each
visible only when it is complete, and calls the hook that follows each save, such as a copy to a bucket.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.spec import CheckpointSpec
from trainer.training.checkpoint import save_best, save_checkpoint, take_snapshot

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
