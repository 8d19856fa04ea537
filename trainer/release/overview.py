"""Table of all runs of an output: name, state and accuracy.

Costs one listing of the folders and a metadata read of one small object per finished run, in parallel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from typing import Any

from trainer.data.progress import Progress, SilentProgress
from trainer.runs.champion import read_pointer
from trainer.runs.marker import read_summary, summarize
from trainer.runs.publish import MANIFEST, MARKER, POINTER, RETIRED, is_finished, named_run
from trainer.spec.schema import RUN_NAME
from trainer.storage.mirror import AT_A_TIME
from trainer.storage.store import Store, read_object

_DIGITS = 12
_SECOND = len("2026-11-27 03:00:00")
_SILENT = SilentProgress()


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    state: str
    """"finished", "unfinished", or "retired" (withdrawn, to be removed)."""
    published: str
    """Publication time in UTC, as 2026-11-27 03:00:00; empty if not published."""
    data: str
    """First 12 digits of the data digest; empty if unknown."""
    accuracy: float | None
    """Accuracy on the held-out images, in 0..1."""
    gap: float | None
    """Accuracy on the training images minus `accuracy`."""
    recipe: str
    """Empty if the run has none."""
    epochs: int
    """Number of completed epochs."""
    seconds: float | None
    """Time of the training."""
    is_champion: bool
    is_latest: bool


def overview(output: Store, progress: Progress = _SILENT) -> list[Row]:
    """Return all runs: published ones first, the most recent first, then the others."""
    champion = read_pointer(output).name
    latest = named_run(output.read(POINTER))
    names = [name for name in output.folders() if re.fullmatch(RUN_NAME, name)]
    task = progress.start(f"Reading {output.uri}", len(names), "runs")
    rows = []
    pool = ThreadPoolExecutor(AT_A_TIME)
    try:
        for row in pool.map(lambda name: _row(output.below(name), name, champion, latest), names):
            task.advance(1)
            rows += [row] if row else []
    finally:
        task.finish()
        pool.shutdown(wait=False, cancel_futures=True)  # after an error the remaining runs are not read
    return sorted(rows, key=lambda row: row.published, reverse=True)


def _row(run: Store, name: str, champion: str, latest: str) -> Row | None:
    """Return the row of a run; None for a folder that is not a run."""
    state, summary = _state(run)
    if not state:
        return None
    epochs = summary.get("epochs")
    return Row(
        name=name,
        state=state,
        published=str(summary.get("published", ""))[:_SECOND].replace("T", " "),
        data=str(summary.get("data", "")).removeprefix("sha256:")[:_DIGITS],
        accuracy=_number(summary.get("accuracy")),
        gap=_number(summary.get("gap")),
        recipe=str(summary.get("recipe") or ""),
        epochs=epochs if isinstance(epochs, int) else 0,
        seconds=_number(summary.get("seconds")),
        is_champion=name == champion,
        is_latest=name == latest and state == "finished",
    )


def _number(value: Any) -> float | None:
    return value if isinstance(value, float | int) and isfinite(value) else None


def _state(run: Store) -> tuple[str, Mapping[str, Any]]:
    """Return the state of a run and its summary; an empty state for a folder that is not a run."""
    marker = run.find(MARKER)
    summary = read_summary(marker.labels) if marker else None
    if summary is not None and "epochs" in summary:
        return "finished", summary
    if run.find("spec.yaml") is None:
        return "", {}
    # It is on disk, was copied without metadata, or was published by an earlier version.
    summary = summarize(lambda name: found.data if (found := run.read(name)) else b"")
    if marker is None or not is_finished(run):
        return "retired" if run.find(RETIRED) else "unfinished", summary | {"accuracy": None, "gap": None}
    return "finished", summary | {"published": read_object(run, MANIFEST).get("published", "")}
