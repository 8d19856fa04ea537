"""The pointer to the champion: the one finished run that is released.

In: the store of all runs. Out: `champion`, the name of that run, changed by compare-and-swap.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.exits import UsageError
from trainer.publish import is_finished, named_run
from trainer.spec.schema import CHAMPION
from trainer.storage.store import Store


@dataclass(frozen=True)
class Champion:
    """Which run it is, as it was read."""

    name: str
    """Empty while there is none."""
    version: str | None
    """Of the pointer, for the swap; None if there is no pointer."""


def read_pointer(output: Store) -> Champion:
    """Return what the pointer says, whether there is such a run or not."""
    found = output.read(CHAMPION)
    return Champion(named_run(found), found.version if found else None)


def read_champion(output: Store) -> Champion:
    """Return the champion of `output`. Raises UsageError if the pointer names no finished run."""
    champion = read_pointer(output)
    if champion.version is not None and not (champion.name and is_finished(output.below(champion.name))):
        raise UsageError(
            "The pointer to the champion names no finished run, as one that was removed; "
            "`trainer rollback` goes back to the one before it, `trainer promote RUN --force` names another. "
            f"Received: {champion.name!r} in {output.at(CHAMPION)}"
        )
    return champion


def swap_champion(output: Store, name: str, version: str | None) -> str | None:
    """Let the pointer name `name` if it is still of `version`; return its version now, None if it wasn't."""
    return output.swap(CHAMPION, f"{name}\n".encode(), version)


def restore_champion(output: Store, before: Champion, version: str) -> None:
    """Let the pointer be what it was `before`, if it is still of `version`."""
    if before.version is None:
        output.remove(CHAMPION, version)
    else:
        swap_champion(output, before.name, version)
