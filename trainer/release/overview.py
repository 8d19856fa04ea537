"""All runs of an output, as a table.

In: the store of all runs. Out: a `Row` each: what it is called, how far it is, and how good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from trainer.champion import read_pointer
from trainer.compare.runs import HELD_OUT
from trainer.publish import MANIFEST, RETIRED, is_finished, latest_run
from trainer.storage.objects import read_object
from trainer.storage.store import Store

_DIGITS = 12
_SECOND = len("2026-11-27 03:00:00")


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    state: str
    """finished, unfinished, or retired: withdrawn, and soon removed."""
    published: str
    """In UTC, as 2026-11-27 03:00:00; empty if it isn't."""
    data: str
    """The first digits of its data's digest; empty if it isn't known."""
    accuracy: float | None
    """On the held-out images, in 0..1."""
    is_champion: bool
    is_latest: bool


def overview(output: Store) -> Iterator[Row]:
    """Yield every run, those published last first, then the unfinished ones."""
    champion = read_pointer(output).name
    latest = latest_run(output)
    names = {entry.name.partition("/")[0] for entry in output.entries() if entry.name.endswith("/spec.yaml")}
    rows = [_row(output.below(name), name, champion, latest) for name in sorted(names)]
    yield from sorted(rows, key=lambda row: row.published, reverse=True)


def _row(run: Store, name: str, champion: str, latest: str | None) -> Row:
    is_done = is_finished(run)
    metrics, dataset = read_object(run, "metrics.json"), read_object(run, "dataset.json")
    accuracy = next((metrics[key] for split in HELD_OUT if (key := f"{split}/accuracy") in metrics), None)
    known = accuracy if is_done and isinstance(accuracy, float | int) and isfinite(accuracy) else None
    return Row(
        name=name,
        state="finished" if is_done else "retired" if run.find(RETIRED) else "unfinished",
        published=str(read_object(run, MANIFEST).get("published", ""))[:_SECOND].replace("T", " ")
        if is_done
        else "",
        data=str(dataset.get("digest", "")).removeprefix("sha256:")[:_DIGITS],
        accuracy=known,
        is_champion=name == champion,
        is_latest=name == latest,
    )
