"""Images in a bucket, brought to local disk.

In: a gs:// URI of an archive, a file, or a folder. Out: a local file or folder with the same
names, verified, kept in the cache by what the bucket says of its versions: what was fetched
once is fetched again only after it changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.data.progress import Progress
from trainer.exits import DataError
from trainer.storage import build_once
from trainer.storage.store import Entry, Store, open_store, split_uri

_TRANSFERS = 16
"""At a time: small objects are all waiting."""


def fetch_bucket(source: str, cache_dir: Path, max_bytes: int, progress: Progress) -> Path:
    """Return the local copy of the object or of the folder at `source`.

    Raises DataError (nothing there, unsafe names, more than `max_bytes`), UsageError (no such
    bucket, no right to it), TemporaryError (network, full disk).
    """
    bucket, prefix = split_uri(source)
    whole = open_store(f"gs://{bucket}")
    found = whole.find(prefix) if prefix else None
    if found:
        parent, _, name = prefix.rpartition("/")
        entry = Entry(name, found.size, found.version)
        return _copy(whole.below(parent), [entry], cache_dir, max_bytes, progress) / name
    store = whole.below(prefix)
    entries = store.entries()
    if not entries:
        raise DataError(
            f"There is no such object or folder in the bucket. Check data.source. Received: {source!r}"
        )
    return _copy(store, entries, cache_dir, max_bytes, progress)


def _copy(
    store: Store, entries: Sequence[Entry], cache_dir: Path, max_bytes: int, progress: Progress
) -> Path:
    for entry in entries:
        require_safe(entry.name, store)
    size = sum(entry.size for entry in entries)
    if size > max_bytes:
        raise DataError(
            f"{store.uri} holds more than data.max_extracted_mib allows; name a smaller folder or raise it. "
            f"Received: {size >> 20:,} MiB"
        )
    identity = json.dumps([store.uri, [[entry.name, entry.version] for entry in entries]])
    folder = cache_dir / "buckets" / hashlib.sha256(identity.encode()).hexdigest()
    return build_once(
        folder,
        lambda partial: _download(store, entries, partial, progress),
        lambda: progress.say(f"another process is fetching {store.uri}: waiting for it"),
    )


def _download(store: Store, entries: Sequence[Entry], folder: Path, progress: Progress) -> None:
    task = progress.start(f"Fetching {store.uri}", sum(entry.size for entry in entries), "B")

    def fetch(entry: Entry) -> int:
        store.download(entry.name, folder / entry.name)
        return entry.size

    pool = ThreadPoolExecutor(_TRANSFERS)
    try:
        for size in pool.map(fetch, entries):
            task.advance(size)
    finally:
        # After a failure those that wait for their turn are not begun.
        pool.shutdown(cancel_futures=True)
        task.finish()


def require_safe(name: str, store: Store) -> None:
    """Raise DataError for a name that a folder can't hold or that leads out of it."""
    if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > 255 for part in name.split("/")):
        raise DataError(
            f"An object has a name that no folder can hold; rename it. Received: {store.at(name)!r}"
        )
