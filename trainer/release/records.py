"""The records of every decision about the champion.

In: the store of all runs, and what was decided. Out: below `releases/` a file for each decision, which
nothing changes afterwards. One that changes the champion is kept just before the pointer moves, so that none
is lost; where a process ended between both it speaks of what never came to be, and is not in effect.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

from trainer.champion import read_pointer
from trainer.publish import published_at
from trainer.storage.objects import read_object
from trainer.storage.store import Store

RECORDS = "releases"
CHALLENGE = "challenge"
ROLLBACK = "rollback"
"""The kind of a record that undoes the one before it."""
_STAMPED = "%Y%m%dT%H%M%S.%fZ"
_STAMP = len("20261127T030000.000000Z")
_NAME = re.compile(rf"{RECORDS}/\d{{8}}T\d{{6}}\.\d{{6}}Z-(.+)-[0-9a-f]{{6}}\.json")


def keep_record(output: Store, kind: str, name: str, values: Mapping[str, Any]) -> str:
    """Keep what was decided about the run `name`; return the record's name.

    Raises UsageError, TemporaryError.
    """
    now = _time_of(output, name)
    # Never the name of another one: no decision is lost, however many are made at once.
    record = f"{RECORDS}/{now.strftime(_STAMPED)}-{name}-{secrets.token_hex(3)}.json"
    told = {"kind": kind, "run": name, "decided": now.isoformat(timespec="microseconds"), **values}
    output.write(record, (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
    return record


def _time_of(output: Store, name: str) -> datetime:
    """Return the time of a decision about the run `name`: now, and later than all that it follows.

    Another machine's clock may be ahead, and the order of the records says whose place each took.
    """
    times = [datetime.now(timezone.utc)]
    for record in _records(output)[-1:]:
        last = datetime.strptime(record.partition("/")[2][:_STAMP], _STAMPED).replace(tzinfo=timezone.utc)
        times.append(last + timedelta(microseconds=1))
    with suppress(ValueError):
        times.append(datetime.fromisoformat(published_at(output, name)).astimezone(timezone.utc))
    return max(times)


def read_records(output: Store, name: str | None = None) -> list[dict[str, Any]]:
    """Return all decisions, or those about the run `name`, the oldest first; no file that is no record."""
    found = [_read(output, record) for record in _records(output, name)]
    return [each for each in found if each is not None]


def was_decided(output: Store, name: str) -> bool:
    """Return whether it was decided about the finished run `name`, and that came to be."""
    records = read_records(output, name)
    since = published_at(output, name) if records else ""
    # What is older was about a run of the same name, which is gone.
    mine = [each for each in records if str(each.get("decided", "")) >= since]
    if any(not each.get("is_released") for each in mine):
        return True
    return bool(mine) and any(each in mine for each in _in_effect(output, read_pointer(output).name))


def champion_before(output: Store, name: str) -> str | None:
    """Return whose place the champion `name` took when it was released; going back leads further back."""
    undone = 0
    for record in _in_effect(output, name):
        if record["kind"] == ROLLBACK:
            undone += 1
        elif undone:
            undone -= 1
        else:
            return str(record.get("replaced") or "") or None
    return None


def _in_effect(output: Store, champion: str) -> Iterator[dict[str, Any]]:
    """Yield the records by which `champion` came to be it, the newest first: each took the next's place."""
    names = _records(output)
    while champion and names:
        record = names.pop()
        found = _read(output, record) if _run_of(record) == champion else None
        if found is not None and found.get("is_released"):
            yield found
            champion = str(found.get("replaced") or "")


def _records(output: Store, name: str | None = None) -> list[str]:
    """Return the names of the records, of the run `name` where that is given, sorted by time."""
    found = sorted(entry.name for entry in output.entries(f"{RECORDS}/"))
    return [each for each in found if (run := _run_of(each)) and name in (None, run)]


def _run_of(record: str) -> str:
    """Return the run that a record is about, by its name; empty for a file that is none."""
    match = _NAME.fullmatch(record)
    return match[1] if match else ""


def _read(output: Store, record: str) -> dict[str, Any] | None:
    """Return a record; None for what can't be read as one."""
    value = read_object(output, record)
    return value if "kind" in value and "run" in value else None
