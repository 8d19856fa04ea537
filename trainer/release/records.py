"""The records of every decision about the champion.

In: the store of all runs, and what was decided. Out: below `releases/` a file for each decision, which
nothing changes or removes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from trainer.storage.store import Store

RECORDS = "releases"


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


def champion_before(output: Store, name: str) -> str | None:
    """Return whose place the champion `name` took when it was released; going back leads further back."""
    for record in reversed(read_records(output)):
        if record["run"] == name and record.get("is_released") and record["kind"] != "rollback":
            replaced = record.get("replaced")
            return str(replaced) if replaced else None
    return None
