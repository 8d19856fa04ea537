"""Manifest of a published run: its files with sizes and digests, and its sequence number.

Parses the bytes of a `MANIFEST.json` into `FileRecord`s and compares files with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from trainer.errors import TemporaryError, TrainerError
from trainer.storage.store import Entry, Store

SCHEMA = 1
"""Schema version of the manifest; other versions are rejected."""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class FileRecord:
    """One file of a run."""

    path: str
    """Path relative to the run, with '/'."""
    size: int
    """Size in bytes."""
    sha256: str


def read_manifest(data: bytes) -> dict[str, FileRecord]:
    """Return the files of a manifest, by path. Raises ValueError, KeyError or TypeError if it is invalid."""
    manifest = json.loads(data)
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"its schema is {manifest['schema']!r}, this version supports {SCHEMA}")
    records = [FileRecord(**record) for record in manifest["files"]]
    for record in records:
        if (type(record.path), type(record.size), type(record.sha256)) != (str, int, str):
            raise ValueError(f"an entry is not a path, a size and a digest: {record.path!r}")
    return {record.path: record for record in records}


def difference(run: Store, listed: FileRecord, entry: Entry) -> str:
    """Describe how a file differs from its published state; empty if it does not."""
    if entry.size != listed.size:
        return f"{listed.path} has {entry.size:,} bytes instead of {listed.size:,}"
    try:
        digest = run.sha256(listed.path)
    except TemporaryError:
        raise  # a failed read is not a difference
    except TrainerError as error:
        return str(error)
    return "" if digest == listed.sha256 else f"{listed.path} has other contents than the published file"


def sequence_of(manifest: Mapping[str, Any]) -> int:
    """Return the sequence number of a run; a later publication has a higher one. 0 if there is none.

    A hybrid logical clock: microseconds since 1970, and higher than the sequence number of the previous
    latest run, so the order does not depend on other machines' clocks or on file times. For manifests of
    older versions, which have no sequence number, it is the time of publication.
    """
    sequence = manifest.get("sequence")
    if isinstance(sequence, int):
        return sequence
    try:
        published = datetime.fromisoformat(str(manifest.get("published")))
        return _microseconds(published.astimezone(timezone.utc))
    except (ValueError, OverflowError):
        return 0


def next_sequence(latest: Mapping[str, Any]) -> int:
    """Return the sequence number for a publication now, after the run with the manifest `latest`."""
    return max(_microseconds(datetime.now(timezone.utc)), sequence_of(latest) + 1)


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
