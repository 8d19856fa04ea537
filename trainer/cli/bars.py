"""Progress bars for a terminal, and their replacement for a log: one event per interval."""

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
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_BAR_WIDTH, _EPOCH_BAR_WIDTH = 18, 8


class BarTask:
    """A `Task` with a progress bar."""

    def __init__(self, bar: Progress, task: TaskID, end: Callable[[], None]) -> None:
        self._bar, self._task, self._end = bar, task, end

    def advance(self, amount: int) -> None:
        """Advance the bar."""
        self._bar.advance(self._task, amount)

    def finish(self) -> None:
        """Remove the bar; the next fact reports the result."""
        self._end()


class LogTask:
    """A `Task` that logs one event per interval, and none for shorter work."""

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
        """Add `amount`, and log a line if the interval is over."""
        self._done += amount
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            self._log({**self._event, "done": self._done})

    def finish(self) -> None:
        """Do nothing; the next fact reports the result."""


def work_bar(console: rich.console.Console, unit: str) -> Progress:
    """Return a bar for work of known or unknown size, in bytes or items."""
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


def phase_bar(console: rich.console.Console) -> Progress:
    """Return a spinner with the elapsed time, for a phase without a measure of its progress."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def epoch_bar(console: rich.console.Console) -> Progress:
    """Return the bar for training; its field `now` is the text on its right."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(_EPOCH_BAR_WIDTH),
        TextColumn("{task.fields[now]}"),
        TextColumn("eta"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )
