"""Champion pointer: the name of the one finished run that is released.

The file `champion` in the store of all runs, changed by compare-and-swap only.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import UsageError
from trainer.runs.publish import is_finished, named_run
from trainer.spec.schema import CHAMPION
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
    found = output.read(CHAMPION)
    return Champion(named_run(found), found.version if found else None)


def read_champion(output: Store) -> Champion:
    """Return the champion of `output`. Raises UsageError if the pointer does not name a finished run."""
    champion = read_pointer(output)
    if champion.version is not None and not (champion.name and is_finished(output.below(champion.name))):
        raise UsageError(
            "The pointer to the champion names no finished run, as one that was removed; "
            "`trainer rollback` goes back to the one before it, `trainer promote RUN --force` names another.",
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
