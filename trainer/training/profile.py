"""Profiling of a range of steps with the TensorFlow profiler, for TensorBoard.

The profile covers exactly these steps and is written to a folder that `tensorboard --logdir` of the run
shows. Profiling does not change the trained weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from trainer.storage.local import require_right
from trainer.training.prefetch import BatchBlock


class Profile:
    """Wraps every block of steps, and records those of the selected range."""

    def __init__(
        self, steps: tuple[int, int] | None, folder: Path | None, on_message: Callable[[str], None]
    ) -> None:
        """steps: the first and the last step, counted from 1; None for no profile.

        folder: None in a process that writes no profile; its blocks end at the same steps nevertheless.
        """
        self._steps, self._folder, self._on_message = steps, folder, on_message
        self._is_on = False

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Steps, counted from 0, that a block must not cross."""
        return () if self._steps is None else (self._steps[0] - 1, self._steps[1])

    def begin_run(self, step: int, total_steps: int) -> None:
        """Report if steps of the range are done or never reached; `step` of `total_steps` are done."""
        if self._steps is None or self._folder is None:
            return
        first, last = self._steps
        if last > total_steps:
            self._on_message(f"train.profile requests steps up to {last}, but the training has {total_steps}")
        if step >= first and (step < last or not (self._folder / "plugins").exists()):
            self._on_message(f"train.profile requests steps from {first} on, but {step} are already done")

    @contextmanager
    def around(self, block: BatchBlock) -> Iterator[None]:
        """Record the block of the `with` statement if the steps of `block` are in the range."""
        self._begin(block.first_step)
        if not self._is_on or self._steps is None:
            yield
            return
        # TensorBoard counts each call of the compiled steps as one step.
        with tf.profiler.experimental.Trace("train", step_num=block.first_step + 1, _r=1):
            yield
        if block.first_step + block.steps >= self._steps[1]:
            self.end()

    def end(self) -> None:
        """Stop recording and write the profile."""
        if self._is_on and self._folder is not None:
            self._is_on = False
            require_right(self._folder)
            try:
                tf.profiler.experimental.stop()
            except tf.errors.OpError as error:
                self._on_message(f"The profile could not be written: {error.message[:200]}")
            else:
                # Not the path: for a run in a bucket it is local to this process.
                self._on_message(
                    "The profile is in the run's folder profile/. View it with tensorboard --logdir."
                )

    def _begin(self, step: int) -> None:
        """Start recording before `step`, counted from 0, if it is in the range."""
        if self._steps is None or self._folder is None or self._is_on:
            return
        if self._steps[0] - 1 <= step < self._steps[1]:
            try:
                tf.profiler.experimental.start(str(self._folder))
            except tf.errors.OpError as error:
                # For example, another profiler is running in this process; training continues without a
                # profile.
                self._on_message(f"Profiling is not possible: {error.message[:200]}")
                self._folder = None
            else:
                self._is_on = True
