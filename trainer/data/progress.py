"""Progress reporting protocols.

The data package reports progress only through these two protocols; the command line implements them as a
progress bar.
"""

from __future__ import annotations

from typing import Protocol


class Task(Protocol):
    """A running operation with a progress count."""

    def advance(self, amount: int) -> None:
        """Report that `amount` more units are done; never negative."""

    def finish(self) -> None:
        """Report the end of the operation, successful or not; called once."""


class Progress(Protocol):
    """Progress reporter."""

    def start(self, label: str, total: int | None, unit: str) -> Task:
        """Start a task of `total` units, None if unknown; `unit` is "B" for bytes, otherwise a plural."""

    def on_message(self, message: str) -> None:
        """Print a message that is not an error: a retry, a wait, the use of a cached copy."""


class SilentTask:
    """A task without output."""

    def advance(self, amount: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class SilentProgress:
    """A progress reporter without output."""

    def start(self, label: str, total: int | None, unit: str) -> Task:
        """Return a silent task."""
        return SilentTask()

    def on_message(self, message: str) -> None:
        """Do nothing."""
