"""Download of Cloud Storage objects into the local cache.

A source is the gs:// URI of an archive, a file or a folder, or a list of URIs of single images. The local
files have the same names as the objects and are verified. The cache key includes the object versions, so that
objects are downloaded again only after they change.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Sequence
from pathlib import Path

from trainer.data.extractor import TooLargeError
from trainer.data.placeholders import FOLDER as OUTLINES
from trainer.data.placeholders import is_outlined, write_outline
from trainer.data.progress import Progress
from trainer.errors import DataError
from trainer.sanitize import shown_address
from trainer.storage import build_once
from trainer.storage.store import Entry, Store, open_store, split_uri
from trainer.storage.transfers import download_files


def fetch_bucket(
    source: str, cache_dir: Path, max_bytes: int, progress: Progress, outline: bool = False
) -> Path:
    """Return the local copy of the object or folder at `source`.

    With `outline`, the images of a folder are placeholder files (`trainer.data.placeholders`). Raises
    DataError (no such object, unsafe names, more than `max_bytes`), UsageError (no such bucket, permission
    denied), TemporaryError (network, full disk).
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
            "There is no such object or folder in the bucket. Check its name.",
            received=f"{shown_address(source)!r}",
        )
    return _copy(store, entries, cache_dir, max_bytes, progress, outline)


def fetch_objects(
    uris: Sequence[str], cache_dir: Path, max_bytes: int, progress: Progress, outline: bool = False
) -> dict[str, Path]:
    """Return the local copies of single objects by gs:// URI; missing objects are omitted.

    Lists the common parent folder of the objects in each bucket. Raises the same errors as `fetch_bucket`.
    """
    found: dict[str, Path] = {}
    for bucket in sorted({split_uri(uri)[0] for uri in uris}):
        names = {split_uri(uri)[1]: uri for uri in uris if split_uri(uri)[0] == bucket}
        common = posixpath.commonpath([posixpath.dirname(f"/{name}") for name in names]).strip("/")
        store = open_store(f"gs://{bucket}/{common}")
        start = len(common) + 1 if common else 0
        wanted = {name[start:]: uri for name, uri in names.items()}
        entries = [entry for entry in store.entries() if entry.name in wanted]
        if entries:
            folder = _copy(store, entries, cache_dir, max_bytes, progress, outline)
            found |= {wanted[entry.name]: folder / entry.name for entry in entries}
    return found


def _copy(
    store: Store,
    entries: Sequence[Entry],
    cache_dir: Path,
    max_bytes: int,
    progress: Progress,
    outline: bool = False,
) -> Path:
    for entry in entries:
        require_safe(entry.name, store)
    images = [entry for entry in entries if outline and is_outlined(entry.name)]
    others = [entry for entry in entries if not (outline and is_outlined(entry.name))]
    size = sum(entry.size for entry in others)
    if size > max_bytes:
        raise TooLargeError(
            f"{store.uri} holds more than data.max_extracted_mib allows; name a smaller folder or raise it. "
            f"Received: {size >> 20:,} MiB"
        )
    identity = json.dumps([store.uri, [[entry.name, entry.version] for entry in entries]])
    parent = cache_dir / (OUTLINES if outline else "buckets")

    def build(partial: Path) -> None:
        if others:
            _download(store, others, partial, progress)
        if outline:
            write_outline(store, images, partial)

    return build_once(
        parent / hashlib.sha256(identity.encode()).hexdigest(),
        build,
        lambda: progress.say(f"another process is fetching {store.uri}: waiting for it"),
    )


def _download(store: Store, entries: Sequence[Entry], folder: Path, progress: Progress) -> None:
    task = progress.start(f"Fetching {store.uri}", sum(entry.size for entry in entries), "B")
    try:
        download_files(store, entries, folder, task.advance)
    finally:
        task.finish()


def require_safe(name: str, store: Store) -> None:
    """Raise DataError if a folder cannot hold a file of this name, or if the name leads out of the folder."""
    if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > 255 for part in name.split("/")):
        raise DataError(
            "An object has a name that no folder can hold; rename it.", received=f"{store.at(name)!r}"
        )
