"""How often a run was started, and whether the starts get anywhere.

In: the run's folder. Out: starts.jsonl, one row a start; a run that is started again and again
without a new checkpoint is given up. Starts that a message to the user or Ctrl-C ended don't count.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer.exits import DivergedError
from trainer.storage.local import append_line, write_text

STARTS = "starts.jsonl"


def count_start(folder: Path, newest_checkpoint: str, most_stalled: int) -> None:
    """Add a row for this start. Raises DivergedError if it is one too many without a new checkpoint.

    `newest_checkpoint` is the name of the file, empty if there is none.
    """
    rows = _read(folder)
    stalled = 0
    while stalled < len(rows) and rows[-1 - stalled].get("checkpoint") == newest_checkpoint:
        stalled += 1
    if stalled > most_stalled:
        raise DivergedError(
            f"This run was started {stalled} times from {newest_checkpoint or 'its beginning'} and never got "
            f"any further. See why it ended, then start it with --fresh, or raise "
            f"train.max_stalled_starts. Received: {most_stalled}"
        )
    row = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": platform.node(),
        "pid": os.getpid(),
        "checkpoint": newest_checkpoint,
    }
    append_line(folder / STARTS, json.dumps(row))


def forget_start(folder: Path) -> int:
    """Remove the row of this start, which ended with a message and didn't get stuck; return how many stay."""
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
        return None  # a crash tore it
    return row if isinstance(row, dict) else None
