"""Log of the starts of a run, and the limit on starts without progress.

starts.jsonl has one row per start. A run that is restarted repeatedly without a new checkpoint fails.
Starts that ended with an error message or Ctrl-C are not counted.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer.errors import DivergedError
from trainer.storage.local import append_line, write_text

STARTS = "starts.jsonl"


def count_start(folder: Path, newest_checkpoint: str, max_stalled_starts: int) -> None:
    """Append a row for this start. Raises DivergedError after too many starts without a new checkpoint.

    `newest_checkpoint` is a file name, empty if there is no checkpoint.
    """
    rows = _read(folder)
    stalled = 0
    while stalled < len(rows) and rows[-1 - stalled].get("checkpoint") == newest_checkpoint:
        stalled += 1
    if stalled > max_stalled_starts:
        raise DivergedError(
            f"This run was started {stalled} times from {newest_checkpoint or 'its beginning'} without "
            "writing a new checkpoint.",
            "Find the reason in the log, then start the run with --fresh or raise train.max_stalled_starts.",
            received=max_stalled_starts,
        )
    row = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": platform.node(),
        "pid": os.getpid(),
        "checkpoint": newest_checkpoint,
    }
    append_line(folder / STARTS, json.dumps(row))


def forget_start(folder: Path) -> int:
    """Remove the row of this start, which did not get stuck, and return the number of remaining rows."""
    rows = _read(folder)[:-1]
    write_text(folder / STARTS, "".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def _read(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / STARTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [row for row in map(_row, lines) if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None  # incomplete line, written during a crash
    return row if isinstance(row, dict) else None
