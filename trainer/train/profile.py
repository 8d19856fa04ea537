"""A profile of some steps, for TensorBoard.

In: which steps, and a folder. Out: in that folder, what the machine did in exactly these steps; `tensorboard
--logdir` of the run shows it. What is trained is the same with it and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from trainer.storage.guard import require_right
from trainer.train.feed import Block


class Profile:
    """Put around every block of steps."""

    def __init__(
        self, steps: tuple[int, int] | None, folder: Path | None, on_message: Callable[[str], None]
    ) -> None:
        """`steps`: the first and the last, counted from 1; None for no profile.

        `folder` is None in a process that writes nothing, whose blocks are as those of the one that does.
        """
        self._steps, self._folder, self._on_message = steps, folder, on_message
        self._is_on = False

    @property
    def borders(self) -> tuple[int, ...]:
        """Before which steps, counted from 0, a block has to end."""
        return () if self._steps is None else (self._steps[0] - 1, self._steps[1])

    def begin_run(self, step: int, total_steps: int) -> None:
        """Say if some of the steps are no longer to come, or never; `step` are done of `total_steps`."""
        if self._steps is None or self._folder is None:
            return
        first, last = self._steps
        if last > total_steps:
            self._on_message(f"train.profile asks for steps up to {last}; there are {total_steps}")
        if step >= first and (step < last or not (self._folder / "plugins").exists()):
            self._on_message(f"train.profile asks for steps from {first} on; {step} are done already")

    @contextmanager
    def around(self, block: Block) -> Iterator[None]:
        """Watch what is done meanwhile, if the steps of `block` are among those to be seen."""
        self._begin(block.first_step)
        if not self._is_on or self._steps is None:
            yield
            return
        # What TensorBoard's tables call a step is a call of the compiled steps.
        with tf.profiler.experimental.Trace("train", step_num=block.first_step + 1, _r=1):
            yield
        if block.first_step + block.steps >= self._steps[1]:
            self.end()

    def end(self) -> None:
        """Write what was seen so far."""
        if self._is_on and self._folder is not None:
            self._is_on = False
            require_right(self._folder)
            try:
                tf.profiler.experimental.stop()
            except tf.errors.OpError as error:
                self._on_message(f"the profile could not be written: {error.message[:200]}")
            else:
                # Not its path: that of a run in a bucket is of this process alone.
                self._on_message("a profile is in the run's profile/; tensorboard --logdir shows it")

    def _begin(self, step: int) -> None:
        """Start before `step`, counted from 0, if it is the first to be seen by this process."""
        if self._steps is None or self._folder is None or self._is_on:
            return
        if self._steps[0] - 1 <= step < self._steps[1]:
            try:
                tf.profiler.experimental.start(str(self._folder))
            except tf.errors.OpError as error:
                # As where another one is running in this process: no reason not to train.
                self._on_message(f"there is no profile: {error.message[:200]}")
                self._folder = None
            else:
                self._is_on = True
