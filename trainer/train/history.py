"""What each epoch came to, and how long it took.

In: a row of results and a row of times an epoch. Out: history.jsonl, which holds only what the
spec and the data determine, so that two runs can be compared to the bit; timings.json beside
it; and TensorBoard's events, which hold both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.storage.local import write_json, write_text
from trainer.train.events import EventLog

Row = dict[str, Any]


class History:
    """Grows by an epoch at a time; goes into each checkpoint, so that the two can't disagree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: list[Row] = []
        self.timings: list[Row] = []
        self._events = EventLog(folder / "events")

    def __len__(self) -> int:
        """Return how many epochs have their row."""
        return len(self.results)

    def rows(self) -> list[Row]:
        """Return results and times, one row an epoch."""
        return [result | timing for result, timing in zip(self.results, self.timings, strict=True)]

    def add(self, result: Row, timing: Row) -> None:
        """Take an epoch's rows; they reach the disk with `write`."""
        self.results.append(result)
        self.timings.append({"epoch": result["epoch"], **timing})

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON values, which later epochs don't change."""
        return {"results": list(self.results), "timings": list(self.timings)}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Go back to what `record` gave."""
        self.results, self.timings = list(record["results"]), list(record["timings"])

    def write(self) -> None:
        """Write the files of the last epoch that was added."""
        self._write_files()
        self._events.add(self.rows()[-1])

    def replay(self) -> None:
        """Write everything anew: what a crash wrote beyond it, or lost, is set right."""
        self._write_files()
        self._events.replay(self.rows())

    def close(self) -> None:
        """End the file of events."""
        self._events.close()

    def _write_files(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.results)
        write_text(self.folder / "history.jsonl", lines)
        write_json(self.folder / "timings.json", {"epochs": self.timings})
