"""Checkpoints, written while training goes on.

In: the state, in order. Out: checkpoint files, each visible only when it is complete, and what
is to follow each (a copy in a bucket). The state is copied at once; a thread does the rest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.checkpoint import save_best, save_checkpoint, take_snapshot
from trainer.spec import CheckpointSpec

# One being written and one behind it: copies of the state are in memory until they are on disk.
_MOST_WAITING = 2
_LOOK_SECONDS = 0.1


class Saver:
    """Saves in the order of the calls; the error of a save is raised by the next call.

    Nothing is waited for once `is_overdue` returns True.
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
        """What is to be done, and whether a later checkpoint makes it superfluous; the first is under way."""
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self.safe_step: int | None = None
        """The last step whose checkpoint is where it outlives this machine; None if there is none."""
        self._ended = self._is_incomplete = False
        threading.Thread(target=self._work, daemon=True, name="saver").start()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *raised: object) -> None:
        """Let the thread end after the save that it is at; wait for nothing."""
        with self._changed:
            self._ended = True
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
        """Save the state as it is now; see `save_checkpoint`. If it `is_last`, nothing older is begun."""
        arrays = take_snapshot(variables)
        if is_last:
            self._forget_older()

        def job() -> None:
            save_checkpoint(self.folder, step, arrays, record, whole_epoch)
            self._after_save()
            self.safe_step = step

        self._put(job, is_superseded=True)

    def save_best(self, epoch: int, variables: Mapping[str, tf.Variable]) -> None:
        """Save the weights of the best epoch so far; a checkpoint that knows of it comes after it."""
        arrays = take_snapshot(variables)

        def job() -> None:
            save_best(self.folder, epoch, arrays)
            self._after_save()  # before the checkpoint that knows of it

        self._put(job, is_superseded=False)

    def resume_advice(self) -> str:
        """Return a sentence on where a restart begins, by the checkpoints that are complete."""
        if self.safe_step is None:
            return "No checkpoint is complete; a restart begins with the first step."
        return f"Restart to resume from step {self.safe_step}."

    def flush(self) -> bool:
        """Wait until all is saved; return False if that takes too long. Raises what a save raised."""
        with self._changed:
            return self._wait_for(0) and not self._is_incomplete

    def _forget_older(self) -> None:
        with self._changed:
            begun, waiting = list(self._jobs)[:1], list(self._jobs)[1:]
            self._jobs = deque([*begun, *(each for each in waiting if not each[1])])

    def _put(self, job: Callable[[], object], is_superseded: bool) -> None:
        with self._changed:
            if self._wait_for(_MOST_WAITING - 1):
                self._jobs.append((job, is_superseded))
                self._changed.notify_all()
            else:
                self._is_incomplete = True

    def _wait_for(self, most: int) -> bool:
        """Wait until at most so many saves are left; return False if that takes too long."""
        while len(self._jobs) > most and self._error is None:
            if self._is_overdue():
                return False
            self._changed.wait(_LOOK_SECONDS)
        if self._error is not None:
            raise self._error
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._ended:
                    self._changed.wait()
                if not self._jobs:
                    return
                job, _ = self._jobs[0]
            try:
                if self._error is None:  # what comes after a save that failed may lean on it
                    self._before_save()
                    job()
            except BaseException as error:  # training raises it, where it can be handled
                self._error = error
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()


class Pace:
    """When the next checkpoint is due, beside those at the ends of epochs.

    No more than `every_steps` steps are ever done without a checkpoint that is safe. So one is begun
    after half of them, and is written during the other half.
    """

    def __init__(self, spec: CheckpointSpec, saver: Saver) -> None:
        self._spec, self._saver = spec, saver
        self._step, self._at = 0, time.monotonic()
        self.most_steps = None if spec.every_steps is None else max(1, spec.every_steps // 2)
        """Of one call; None for any number."""

    def resumed(self, step: int) -> None:
        """Count from the checkpoint of `step`, which is safe."""
        self._saver.safe_step = step
        self.saved(step)

    def saved(self, step: int) -> None:
        """Count from here."""
        self._step, self._at = step, time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether the minutes or the steps between two checkpoints are over."""
        if self.most_steps is not None and step - self._step >= self.most_steps:
            return True
        return self._spec.every_minutes is not None and (
            time.monotonic() - self._at >= 60.0 * self._spec.every_minutes
        )

    def make_room(self, step: int) -> None:
        """Wait, before the steps up to `step`, until no more than `every_steps` of them can be lost."""
        if (
            self._spec.every_steps is not None
            and step - (self._saver.safe_step or 0) > self._spec.every_steps
        ):
            self._saver.flush()
