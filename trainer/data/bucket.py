"""Download of Cloud Storage objects into the local cache, at once or on demand.

A source is the gs:// URI of an archive, a file or a folder, or a list of URIs of single images. The local
files have the same names as the objects and are verified. The cache key includes the object versions, so that
objects are downloaded again only after they change.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from trainer.data.extractor import TooLargeError
from trainer.data.formats import names_a_picture
from trainer.data.items import Item
from trainer.data.progress import Progress
from trainer.errors import DataError, TemporaryError, UsageError
from trainer.sanitize import shown_address
from trainer.storage import build_once, open_store, translate_errors, write_json
from trainer.storage.mirror import download_files, transfer_all
from trainer.storage.store import Entry, Store, split_uri

FOLDER = "outlines"
"""Subfolder of the cache; each folder in it is one listing of a bucket."""
_ORIGIN = ".origin.json"


def can_be_placeholder(name: str) -> bool:
    """Return whether a file of this name has an image extension.

    Other files are downloaded immediately and detected by their contents, so images without an extension are
    found too.
    """
    return names_a_picture(PurePosixPath(name).name)


def write_placeholders(store: Store, entries: Sequence[Entry], folder: Path) -> None:
    """Create a placeholder file of the right size in `folder` for each of `entries`, the images of `store`.

    Raises TemporaryError, UsageError.
    """
    for entry in entries:
        path = folder / entry.name
        with translate_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                os.truncate(file.fileno(), entry.size)
    write_json(folder / _ORIGIN, {"uri": store.uri})


def download_placeholders(items: Sequence[Item], cache_dir: Path, folder: Path) -> tuple[Item, ...]:
    """Download the placeholders among `items` to the empty `folder`; return all items, with updated paths.

    Raises TemporaryError, also for an image that no longer exists, and UsageError.
    """
    listings = cache_dir / FOLDER
    paths = {
        item.path for item in items if listings in item.path.parents and can_be_placeholder(item.path.name)
    }
    targets = {path: folder / f"{number}{path.suffix}" for number, path in enumerate(sorted(paths))}
    roots = {path: listings / path.relative_to(listings).parts[0] for path in targets}
    stores = {root: _open_origin(root) for root in set(roots.values())}

    def download(path: Path) -> int:
        root = roots[path]
        name = path.relative_to(root).as_posix()
        try:
            stores[root].download(name, targets[path])
        except UsageError as error:
            if stores[root].find(name) is not None:
                raise
            raise TemporaryError(
                "An image was deleted from the bucket after it was listed.",
                "Run the same command again.",
                received=error,
            ) from None
        return 0

    transfer_all(download, targets, lambda size: None)
    return tuple(replace(item, path=targets.get(item.path, item.path)) for item in items)


def _open_origin(root: Path) -> Store:
    try:
        return open_store(json.loads((root / _ORIGIN).read_bytes())["uri"])
    except (OSError, ValueError, KeyError) as error:
        raise TemporaryError(
            "Another process changed the cache.", "Run the same command again.", received=f"{root} ({error})"
        ) from None


def fetch_bucket(
    source: str, cache_dir: Path, max_bytes: int, progress: Progress, placeholders: bool = False
) -> Path:
    """Return the local copy of the object or folder at `source`.

    With `placeholders`, the images of a folder are placeholder files (`write_placeholders`). Raises
    DataError (no such object, unsafe names, more than `max_bytes`), UsageError (no such bucket, permission
    denied), TemporaryError (network, full disk).
    """
    bucket, prefix = split_uri(source)
    bucket_store = open_store(f"gs://{bucket}")
    single_object = bucket_store.find(prefix) if prefix else None
    if single_object:
        parent, _, name = prefix.rpartition("/")
        entry = Entry(name, single_object.size, single_object.version)
        return _copy(bucket_store.below(parent), [entry], cache_dir, max_bytes, progress) / name
    store = bucket_store.below(prefix)
    entries = store.entries()
    if not entries:
        raise DataError(
            "There is no such object or folder in the bucket.",
            "Check its name.",
            received=f"{shown_address(source)!r}",
        )
    return _copy(store, entries, cache_dir, max_bytes, progress, placeholders)


def fetch_objects(
    uris: Sequence[str], cache_dir: Path, max_bytes: int, progress: Progress, placeholders: bool = False
) -> dict[str, Path]:
    """Return the local copies of single objects by gs:// URI; missing objects are omitted.

    Lists the common parent folder of the objects in each bucket. Raises the same errors as `fetch_bucket`.
    """
    paths: dict[str, Path] = {}
    for bucket in sorted({split_uri(uri)[0] for uri in uris}):
        names = {split_uri(uri)[1]: uri for uri in uris if split_uri(uri)[0] == bucket}
        common = posixpath.commonpath([posixpath.dirname(f"/{name}") for name in names]).strip("/")
        store = open_store(f"gs://{bucket}/{common}")
        start = len(common) + 1 if common else 0
        uris_by_name = {name[start:]: uri for name, uri in names.items()}
        entries = [entry for entry in store.entries() if entry.name in uris_by_name]
        if entries:
            folder = _copy(store, entries, cache_dir, max_bytes, progress, placeholders)
            paths |= {uris_by_name[entry.name]: folder / entry.name for entry in entries}
    return paths


def _copy(
    store: Store,
    entries: Sequence[Entry],
    cache_dir: Path,
    max_bytes: int,
    progress: Progress,
    placeholders: bool = False,
) -> Path:
    for entry in entries:
        require_safe(entry.name, store)
    images = [entry for entry in entries if placeholders and can_be_placeholder(entry.name)]
    others = [entry for entry in entries if not (placeholders and can_be_placeholder(entry.name))]
    size = sum(entry.size for entry in others)
    if size > max_bytes:
        raise TooLargeError(
            f"{store.uri} is larger than data.max_extracted_mib allows.",
            "Use a smaller folder, or raise data.max_extracted_mib.",
            received=f"{size >> 20:,} MiB",
        )
    identity = json.dumps([store.uri, [[entry.name, entry.version] for entry in entries]])
    parent = cache_dir / (FOLDER if placeholders else "buckets")

    def build(partial: Path) -> None:
        if others:
            _download(store, others, partial, progress)
        if placeholders:
            write_placeholders(store, images, partial)

    return build_once(
        parent / hashlib.sha256(identity.encode()).hexdigest(),
        build,
        lambda: progress.on_message(f"Waiting for another process that downloads {store.uri}"),
    )


def _download(store: Store, entries: Sequence[Entry], folder: Path, progress: Progress) -> None:
    task = progress.start(f"Downloading {store.uri}", sum(entry.size for entry in entries), "B")
    try:
        download_files(store, entries, folder, task.advance)
    finally:
        task.finish()


def require_safe(name: str, store: Store) -> None:
    """Raise DataError if a folder cannot hold a file of this name, or if the name leads out of the folder."""
    if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > 255 for part in name.split("/")):
        raise DataError(
            "An object in the bucket has a name that is not a valid file name.",
            "Rename it.",
            received=f"{store.at(name)!r}",
        )
