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
from trainer.runs.marker import held_out_accuracy, read_summary
from trainer.runs.publish import MANIFEST, MARKER, POINTER, RETIRED, is_finished, named_run
from trainer.spec.schema import RUN_NAME
from trainer.storage.store import Store, read_object
from trainer.storage.transfers import AT_A_TIME

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
    accuracy = summary.get("accuracy")
    is_known = isinstance(accuracy, float | int) and isfinite(accuracy)
    return Row(
        name=name,
        state=state,
        published=str(summary.get("published", ""))[:_SECOND].replace("T", " "),
        data=str(summary.get("data", "")).removeprefix("sha256:")[:_DIGITS],
        accuracy=accuracy if is_known else None,
        is_champion=name == champion,
        is_latest=name == latest and state == "finished",
    )


def _state(run: Store) -> tuple[str, Mapping[str, Any]]:
    """Return the state of a run and its summary; an empty state for a folder that is not a run."""
    marker = run.find(MARKER)
    summary = read_summary(marker.labels) if marker else None
    if summary is not None:
        return "finished", summary
    if run.find("spec.yaml") is None:
        return "", {}
    summary = {"data": read_object(run, "dataset.json").get("digest", "")}
    if marker is None or not is_finished(run):
        return "retired" if run.find(RETIRED) else "unfinished", summary
    # The run is on disk, was copied without metadata, or was published by an earlier version.
    accuracy = held_out_accuracy(read_object(run, "metrics.json"))
    published = read_object(run, MANIFEST).get("published", "")
    return "finished", summary | {"accuracy": accuracy, "published": published}
