"""The pointer to the champion, and the records of every decision about it.

In: the store of all runs. Out: `champion`, the name of one finished run, changed by compare-and-swap; and
below `releases/` a file for each decision, which nothing changes or removes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from trainer.exits import UsageError
from trainer.publish import is_finished, named_run
from trainer.storage.store import Store

CHAMPION = "champion"
RECORDS = "releases"


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
            "`trainer promote RUN --force` names another. "
            f"Received: {champion.name!r} in {output.at(CHAMPION)}"
        )
    return champion


def swap_champion(output: Store, name: str, version: str | None) -> bool:
    """Let the pointer name `name` if it is still of `version`; return whether it was."""
    return output.swap(CHAMPION, f"{name}\n".encode(), version) is not None


def keep_record(output: Store, kind: str, name: str, values: Mapping[str, Any]) -> str:
    """Keep what was decided about the run `name`; return the record's name.

    Raises UsageError, TemporaryError.
    """
    now = datetime.now(timezone.utc)
    # Never the name of another one: no decision is lost, however many are made at once.
    record = f"{RECORDS}/{now:%Y%m%dT%H%M%S.%f}Z-{name}-{secrets.token_hex(3)}.json"
    told = {"kind": kind, "run": name, "decided": now.isoformat(timespec="microseconds"), **values}
    output.write(record, (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
    return record


def read_records(output: Store) -> list[dict[str, Any]]:
    """Return all decisions, the oldest first."""
    names = [entry.name for entry in output.entries(f"{RECORDS}/") if entry.name.endswith(".json")]
    found = [output.read(name) for name in sorted(names)]
    return [json.loads(each.data) for each in found if each is not None]
