"""Console output of a run.

A terminal shows lines with one progress bar below them. A log has the same lines, one more line per interval,
epoch and phase, as JSON or as text, and no bar.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

import rich.console
import rich.progress
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
from rich.text import Text

from trainer import __version__
from trainer.data.progress import Task
from trainer.sanitize import without_secrets

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


_LABEL_WIDTH = 10

LogFormat = Literal["text", "json"]


class Console:
    """The `Screen` of a run on a terminal or in a log."""

    def __init__(
        self, log_interval_seconds: float, stderr: bool = False, log_format: LogFormat | None = None
    ) -> None:
        """Write to standard output, or to standard error if `stderr`.

        A `log_format` makes a terminal a log too; without one, a log is JSON.
        """
        self.rich = rich.console.Console(highlight=False, soft_wrap=True, stderr=stderr)
        self.interval = log_interval_seconds
        self._has_bars = self.rich.is_terminal and log_format is None
        self._is_json = log_format != "text"
        self._bar: rich.progress.Progress | None = None
        self._next_log = 0.0
        self._explained = False

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def banner(self) -> None:
        """Print the program name and version."""
        self.line(f"trainer {__version__}")

    def line(self, text: str, style: str = "") -> None:
        """Print one line."""
        self.rich.print(Text(without_secrets(text), style=style))

    def on_fact(self, name: str, text: str) -> None:
        """Print a labelled line; further lines of `text` are aligned with its first."""
        self._end_bar()
        aligned = without_secrets(text).replace("\n", "\n" + " " * (_LABEL_WIDTH + 1))
        self.rich.print(Text.assemble((f"{name:<{_LABEL_WIDTH}} ", "bold"), aligned))

    def on_message(self, message: str) -> None:
        """Print a note for the user."""
        self.line(f"{'note':<{_LABEL_WIDTH}} {message}", style="yellow")

    def start(self, label: str, total: int | None, unit: str) -> Task:
        """Return a task that shows the progress of data work."""
        label = without_secrets(label)
        if not self._has_bars:
            return LogTask(label, total, unit, self.interval, self._log)
        self._start_bar(bar := work_bar(self.rich, unit))
        return BarTask(bar, bar.add_task(label, total=total), self._end_bar)

    def on_phase(self, name: str) -> None:
        """Show the phase `name`, such as "Evaluating", until the next fact or phase."""
        if self._has_bars:
            self._start_bar(bar := phase_bar(self.rich))
            bar.add_task(name, total=None)
        else:
            self._log({"event": "phase", "phase": name})

    def on_call(self, report: Any) -> None:
        """Show the progress of training."""
        if self._has_bars:
            self._show_bar(report)
        elif time.monotonic() >= self._next_log:
            self._next_log = time.monotonic() + self.interval
            self._log({"event": "progress", **_rounded(vars(report))})

    def on_epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Print the metrics of an epoch."""
        if not self._has_bars and self._is_json:
            self._log({"event": "epoch", "epochs": epochs, **_rounded(row)})
            return
        other = _held_out(row)
        if other and not self._explained:
            self._explained = True
            self.on_fact("epochs", f"loss and accuracy on train / {other}")
        self.line(_epoch_line(row, epochs))

    def verdict(self, headline: str, advice: str) -> None:
        """Print the verdict on the run."""
        self._end_bar()
        self.line("")
        self.line(headline, style="bold")
        self.line(advice)

    def _show_bar(self, report: Any) -> None:
        if self._bar is None:
            self._start_bar(bar := epoch_bar(self.rich))
            bar.add_task("", total=report.total_steps, now="")
        else:
            bar = self._bar
        bar.update(
            bar.task_ids[0],
            completed=report.step,
            description=f"epoch {report.epoch}/{report.epochs}",
            now=_progress_text(vars(report)),
        )

    def _start_bar(self, bar: rich.progress.Progress) -> None:
        self._end_bar()
        self._bar = bar
        bar.start()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _log(self, event: Mapping[str, Any]) -> None:
        text = json.dumps(event) if self._is_json else _event_text(event)
        # Not through rich, which would wrap it.
        print(text, file=self.rich.file, flush=True)


def _event_text(event: Mapping[str, Any]) -> str:
    """Return the line of a log in text for a progress, work or phase event."""
    if event["event"] == "phase":
        return f"{'phase':<{_LABEL_WIDTH}} {event['phase']}"
    if event["event"] == "work":
        total = "" if event["total"] is None else f" of {event['total']:,}"
        return f"{'work':<{_LABEL_WIDTH}} {event['label']}: {event['done']:,}{total} {event['unit']}"
    step = f"epoch {event['epoch']}/{event['epochs']}  step {event['step']}/{event['total_steps']}"
    return f"{'progress':<{_LABEL_WIDTH}} {step}  {_progress_text(event)}"


def _progress_text(progress: Mapping[str, Any]) -> str:
    return (
        f"loss {progress['loss']:.3f}  acc {progress['accuracy']:.3f}  "
        f"{progress['images_per_second']:.0f} img/s  wait {progress['wait_share']:.0%}"
    )


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


def _held_out(row: Mapping[str, Any]) -> str:
    """Return the held-out split with metrics in `row`; empty if there is none."""
    return next((key.partition("/")[0] for key in row if key.endswith("/loss") and key != "train/loss"), "")


def _epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    other = _held_out(row)
    pairs = [
        f"{short} {row[f'train/{name}']:.3f}" + (f" / {row[f'{other}/{name}']:.3f}" if other else "")
        for short, name in (("loss", "loss"), ("acc", "accuracy"))
    ]
    ranking = row.get(f"{other}/mean_average_precision")
    pairs += [] if ranking is None else [f"mAP {ranking:.3f}"]
    start = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
    return "  ".join(
        [start, *pairs, f"{row['images_per_second']:.0f} img/s", f"wait {row['wait_share']:.1%}"]
    )


class Quiet:
    """The `Screen` of a process that is not the chief: notes, devices and data progress only."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_message(self, message: str) -> None:
        """Print a note for the user."""
        self._console.on_message(message)

    def on_fact(self, name: str, text: str) -> None:
        """Print the devices of this host; the chief prints all other facts."""
        if name == "devices":
            self._console.on_fact(name, text)

    def start(self, label: str, total: int | None, unit: str) -> Task:
        """Return a task of the console, since each process prepares its own data."""
        return self._console.start(label, total, unit)

    def on_phase(self, name: str) -> None:
        """Do nothing."""

    def on_call(self, report: Any) -> None:
        """Do nothing."""

    def on_epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Do nothing."""
