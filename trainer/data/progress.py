"""How long work says how far it is.

In: a label, a total and a unit. Out: a `Task` to advance. The two protocols are all that
the data rooms know of the screen; the command line brings the bar.
"""

from __future__ import annotations

from typing import Protocol


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int) -> None:
        """Say that `amount` more units are done; never negative."""

    def finish(self) -> None:
        """Say that the work has ended, well or not; called once."""


class Progress(Protocol):
    """Where work is announced."""

    def start(self, label: str, total: int | None, unit: str) -> Task:
        """Announce `total` units of work, None if not known; `unit` is "B" for bytes, else a plural."""

    def say(self, message: str) -> None:
        """Tell the user one thing that isn't an error: a retry, a wait, a cached copy used instead."""


class SilentTask:
    """A task that says nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class SilentProgress:
    """A progress that says nothing."""

    def start(self, label: str, total: int | None, unit: str) -> Task:
        """Return a silent task."""
        return SilentTask()

    def say(self, message: str) -> None:
        """Do nothing."""
