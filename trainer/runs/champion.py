"""Champion pointer, and the selection of the run that a new run starts from.

The pointer is the file `champion` in the store of all runs; it contains the name of the one finished run that
is released, and is changed by compare-and-swap only.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import UsageError
from trainer.runs.publish import find_run, is_finished, latest_run, named_run, require_as_published
from trainer.runs.validate import require_not_withdrawn
from trainer.spec.schema import CHAMPION, LATEST, SCRATCH
from trainer.storage.store import Store


@dataclass(frozen=True)
class Champion:
    """State of the champion pointer."""

    name: str
    """Name of the run; empty if there is no champion."""
    version: str | None
    """Version of the pointer for compare-and-swap; None if there is no pointer."""


def read_pointer(output: Store) -> Champion:
    """Return the state of the pointer, whether or not the run exists."""
    pointer = output.read(CHAMPION)
    return Champion(named_run(pointer), pointer.version if pointer else None)


def read_champion(output: Store) -> Champion:
    """Return the champion of `output`. Raises UsageError if the pointer does not name a finished run."""
    champion = read_pointer(output)
    if champion.version is not None and not (champion.name and is_finished(output.below(champion.name))):
        raise UsageError(
            "The champion pointer names a run that does not exist or is not finished.",
            "Run `trainer rollback OUTPUT` to restore the previous one, or `trainer promote RUN --force` "
            "to choose one.",
            received=f"{champion.name!r} in {output.at(CHAMPION)}",
        )
    return champion


def swap_champion(output: Store, name: str, version: str | None) -> str | None:
    """Compare-and-swap the champion pointer; return the new version, or None if it changed."""
    return output.swap(CHAMPION, f"{name}\n".encode(), version)


def restore_champion(output: Store, before: Champion, version: str) -> None:
    """Restore the pointer to `before` if it still has this version."""
    if before.version is None:
        output.remove(CHAMPION, version)
    else:
        swap_champion(output, before.name, version)


def find_start(output: Store, start_from: str) -> Store | None:
    """Return the finished run of `output` that a new run starts from; None for random initialization.

    None also if there is no latest run or no champion yet, as in the first run of a schedule. Raises
    UsageError for a run that does not exist or is not finished, DataError for one whose files changed since
    publication.
    """
    run = _find(output, start_from)
    if run is not None:
        require_as_published(run, digests=False)
    return run


def _find(output: Store, start_from: str) -> Store | None:
    if start_from == SCRATCH:
        return None
    if start_from in (LATEST, CHAMPION):
        name = latest_run(output) if start_from == LATEST else read_champion(output).name
        return output.below(name) if name else None
    run = find_run(start_from)
    require_not_withdrawn(run)
    if not is_finished(run):
        raise UsageError(
            "train.start_from names a folder that is not a finished run.",
            "Set it to scratch, latest, champion, or the folder of a finished run.",
            received=run.uri,
        )
    return run
