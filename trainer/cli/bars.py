"""Progress bars for a terminal, and their stand-in for a log.

In: labels, totals and advances. Out: a bar that redraws itself, or one JSON line an interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import rich.console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_BAR_WIDTH, _EPOCH_BAR_WIDTH = 18, 8


class BarTask:
    """A `Task` shown as a bar."""

    def __init__(self, bar: Progress, task: TaskID, end: Callable[[], None]) -> None:
        self._bar, self._task, self._end = bar, task, end

    def advance(self, amount: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, amount)

    def finish(self) -> None:
        """Take the bar away: the next fact tells the outcome."""
        self._end()


class LogTask:
    """A `Task` that writes a line an interval; short work leaves none."""

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        interval_seconds: float,
        log: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._event = {"event": "work", "label": label, "total": total, "unit": unit}
        self._interval, self._log, self._done = interval_seconds, log, 0
        self._next = time.monotonic() + interval_seconds

    def advance(self, amount: int) -> None:
        """Count, and write a line when it is time."""
        self._done += amount
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            self._log({**self._event, "done": self._done})

    def finish(self) -> None:
        """Do nothing: the next fact tells the outcome."""


def work_bar(console: rich.console.Console, unit: str) -> Progress:
    """Return a bar for work of known or unknown size, bytes or things."""
    amount: ProgressColumn = DownloadColumn() if unit == "B" else MofNCompleteColumn()
    name = "" if unit == "B" else unit
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(_BAR_WIDTH),
        amount,
        TextColumn(name),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )


def epoch_bar(console: rich.console.Console) -> Progress:
    """Return the bar of a training; its `now` field is the text on its right."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(_EPOCH_BAR_WIDTH),
        TextColumn("{task.fields[now]}"),
        TextColumn("eta"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )
