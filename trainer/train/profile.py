"""A profile of some steps, for TensorBoard.

In: which steps, and a folder. Out: in that folder, what the machine did in exactly these steps; `tensorboard
--logdir` of the run shows it. What is trained is the same with it and without.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tensorflow as tf


class Profile:
    """Told of every block of steps, before it and after."""

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
        if step >= first and not (self._folder / "plugins").exists():
            self._on_message(f"train.profile asks for steps from {first} on; {step} are done already")

    def before(self, first_step: int) -> None:
        """Start if this block, which begins with `first_step` from 0, is the first to be seen."""
        if self._steps is None or self._folder is None or self._is_on:
            return
        if first_step == self._steps[0] - 1:
            tf.profiler.experimental.start(str(self._folder))
            self._is_on = True

    def after(self, step: int) -> None:
        """Stop and write if that was the last; `step` are done."""
        if self._steps is not None and self._is_on and step >= self._steps[1]:
            self.end()

    def end(self) -> None:
        """Write what was seen so far."""
        if self._is_on:
            self._is_on = False
            tf.profiler.experimental.stop()
            self._on_message(f"a profile is in {self._folder}; tensorboard --logdir shows it")
