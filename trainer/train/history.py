"""Training history: results and timings, one row per epoch.

history.jsonl contains only values that the spec and the data determine, so that two runs can be compared bit
by bit. timings.json has the durations. The TensorBoard events contain both.
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
