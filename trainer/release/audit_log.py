"""Audit log of all decisions about the champion.

Each decision is a file below `releases/` that never changes afterwards. A record that moves the champion
pointer is written just before the pointer moves, so that none is lost. After a crash between the two the
record has no effect, because no champion derives from it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

from trainer.runs.champion import read_pointer
from trainer.runs.publish import published_at
from trainer.storage.store import Store, read_object

RECORDS = "releases"
CHALLENGE = "challenge"
ROLLBACK = "rollback"
"""Kind of a record that undoes earlier releases, by default one."""
UNDONE = "releases_undone"
"""Key of a rollback record: number of releases that it undoes."""
_TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_TIME_LENGTH = len("20261127T030000.000000Z")
_NAME = re.compile(rf"{RECORDS}/\d{{8}}T\d{{6}}\.\d{{6}}Z-(.+)-[0-9a-f]{{6}}\.json")


def write_record(output: Store, kind: str, name: str, values: Mapping[str, Any]) -> str:
    """Write an audit record for the run `name`; return the record's name.

    Raises UsageError, TemporaryError.
    """
    now = _time_of(output, name)
    # A unique name: concurrent decisions never overwrite each other.
    record = f"{RECORDS}/{now.strftime(_TIME_FORMAT)}-{name}-{secrets.token_hex(3)}.json"
    content = {"kind": kind, "run": name, "decided": now.isoformat(timespec="microseconds"), **values}
    output.write(record, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return record


def _time_of(output: Store, name: str) -> datetime:
    """Return the time of a decision on the run `name`: now, but later than its publication and all records.

    The order of the records determines each champion's predecessor, and another machine's clock may be ahead.
    """
    times = [datetime.now(timezone.utc)]
    for record in _record_names(output)[-1:]:
        last = datetime.strptime(record.partition("/")[2][:_TIME_LENGTH], _TIME_FORMAT).replace(
            tzinfo=timezone.utc
        )
        times.append(last + timedelta(microseconds=1))
    with suppress(ValueError):
        times.append(datetime.fromisoformat(published_at(output, name)).astimezone(timezone.utc))
    return max(times)


def read_records(output: Store, name: str | None = None) -> list[dict[str, Any]]:
    """Return all records, or those of the run `name`, oldest first. Unreadable files are left out."""
    records = [_read(output, record) for record in _record_names(output, name)]
    return [record for record in records if record is not None]


def was_decided(output: Store, name: str) -> bool:
    """Return whether the finished run `name` has a decision that took effect."""
    records = read_records(output, name)
    since = published_at(output, name) if records else ""
    # Older records are about a deleted run of the same name.
    current = [record for record in records if str(record.get("decided", "")) >= since]
    if any(not record.get("is_released") for record in current):
        return True
    return bool(current) and any(
        record in current for record in _in_effect(output, read_pointer(output).name)
    )


def champion_before(output: Store, name: str) -> str | None:
    """Return the champion that `name` replaced; after rollbacks, the one before the restored champion."""
    return next((run for run, _ in earlier_champions(output, name)), None)


def earlier_champions(output: Store, name: str) -> Iterator[tuple[str, int]]:
    """Yield (run, releases to undo) for each champion before `name`, the most recent one first.

    Releases that a rollback has undone do not count.
    """
    undone = releases = 0
    for record in _in_effect(output, name):
        if record["kind"] == ROLLBACK:
            count = record.get(UNDONE)
            undone += count if isinstance(count, int) else 1
        elif undone:
            undone -= 1
        else:
            releases += 1
            if run := str(record.get("replaced") or ""):
                yield run, releases


def _in_effect(output: Store, champion: str) -> Iterator[dict[str, Any]]:
    """Yield the records that led to `champion`, newest first: each one replaced the champion of the next."""
    names = _record_names(output)
    while champion and names:
        record = names.pop()
        content = _read(output, record) if _run_of(record) == champion else None
        if content is not None and content.get("is_released"):
            yield content
            champion = str(content.get("replaced") or "")


def _record_names(output: Store, name: str | None = None) -> list[str]:
    """Return the names of all records, or of those of the run `name`, sorted by time."""
    names = sorted(entry.name for entry in output.entries(f"{RECORDS}/"))
    return [record for record in names if (run := _run_of(record)) and name in (None, run)]


def _run_of(record: str) -> str:
    """Return the run named in a record's file name; empty for a file that is not a record."""
    match = _NAME.fullmatch(record)
    return match[1] if match else ""


def _read(output: Store, record: str) -> dict[str, Any] | None:
    """Return a record; None if it is unreadable."""
    value = read_object(output, record)
    return value if "kind" in value and "run" in value else None
