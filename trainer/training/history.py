"""Training history: results, timings and throughput, one row per epoch.

history.jsonl contains only values that the spec and the data determine, so that two runs can be compared bit
by bit. timings.json has the durations. The TensorBoard events contain both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.errors import TemporaryError
from trainer.storage.local import require_right, write_json, write_text
from trainer.training.prefetch import BatchPrefetcher
from trainer.training.state import TrainState


class EventLog:
    """TensorBoard event files: one set of scalars per epoch; the step is the epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: tf.summary.SummaryWriter | None = None

    def replay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace all event files by `rows`, which removes rows of lost epochs and adds missing ones."""
        self.close()
        require_right(self.folder)
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row and flush it. Raises TemporaryError if it cannot be written."""
        require_right(self.folder)
        try:
            self._write(row)
        except tf.errors.OpError as error:
            raise TemporaryError(
                "The TensorBoard events could not be written; the disk may be full.",
                "Free some space and run the same command again.",
                received=f"{self.folder} ({error.message[:200]})",
            ) from None

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.folder))
        with self._writer.as_default(step=row["epoch"]):
            for name, value in row.items():
                if name != "epoch":
                    tf.summary.scalar(name, value)
        self._writer.flush()

    def close(self) -> None:
        """Close the current event file, if one is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


Row = dict[str, Any]


class History:
    """Rows of all epochs so far; saved in each checkpoint, so that both stay consistent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: list[Row] = []
        self.timings: list[Row] = []
        self._events = EventLog(folder / "events")

    def __len__(self) -> int:
        """Return the number of finished epochs."""
        return len(self.results)

    def rows(self) -> list[Row]:
        """Return one row per epoch, with results and timings."""
        return [result | timing for result, timing in zip(self.results, self.timings, strict=True)]

    def add(self, result: Row, timing: Row) -> None:
        """Append the rows of an epoch; `write` writes them to disk."""
        self.results.append(result)
        self.timings.append({"epoch": result["epoch"], **timing})

    def record(self) -> dict[str, Any]:
        """Return results and timings as JSON values, which later epochs don't change."""
        return {"results": list(self.results), "timings": list(self.timings)}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Replace the content by a `record`."""
        self.results, self.timings = list(record["results"]), list(record["timings"])

    def write(self) -> None:
        """Write all rows to the JSON files, and the last row to the events."""
        self._write_files()
        self._events.add(self.rows()[-1])

    def replay(self) -> None:
        """Rewrite all files, which removes rows of lost epochs and adds missing ones."""
        self._write_files()
        self._events.replay(self.rows())

    def close(self) -> None:
        """Close the event file."""
        self._events.close()

    def _write_files(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.results)
        write_text(self.folder / "history.jsonl", lines)
        write_json(self.folder / "timings.json", {"epochs": self.timings})


@dataclass(frozen=True)
class TrainResult:
    """History, best epoch and duration of a training."""

    history: list[Row]
    """One row per epoch, including timings."""
    timings: list[Row]
    """One row per epoch: seconds, images per second, and the share of time spent waiting for data."""
    best_epoch: int
    """From 1; 0 if no epoch was validated."""
    seconds: float
    """Training time of all attempts, without evaluation after the last epoch."""
    ended: str
    """Why training ended early, in words; empty if it did not."""


# Long enough to hide the overhead of Python, short enough to react to a stop at once.
_CALL_SECONDS = 0.5


class Clock:
    """Timer for one epoch: duration, images, and time spent waiting for data."""

    def __init__(self, prefetcher: BatchPrefetcher | None, state: TrainState) -> None:
        """prefetcher: the input pipeline, or None if no batches are read."""
        self.prefetcher = prefetcher
        self.started = time.perf_counter()
        self.images, self.waited = state.images, self._waited()

    def seconds(self) -> float:
        """Return the seconds since this object was created."""
        return time.perf_counter() - self.started

    def rates(self, state: TrainState) -> tuple[float, float]:
        """Return images per second, and the share of time spent waiting for data, in 0..1."""
        seconds = max(1e-9, self.seconds())
        return (state.images - self.images) / seconds, (self._waited() - self.waited) / seconds

    def _waited(self) -> float:
        return self.prefetcher.waited_seconds if self.prefetcher is not None else 0.0


def fitting_steps(steps: int, seconds: float) -> int:
    """Return the number of steps for the next call, at most twice `steps`, which took `seconds`."""
    return max(1, min(2 * steps, round(steps * _CALL_SECONDS / max(seconds, 1e-6))))
