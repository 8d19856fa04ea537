"""Checksums of files, which are cached, and digests of data sets.

The checksums of a file are stored in the cache together with its size, inode and modification times, so that
a large archive is hashed only once. The digest of a data set covers the names, labels and content hashes of
its images; equal data sets have equal digests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from trainer.data.archive_errors import read_error
from trainer.data.items import Item
from trainer.data.progress import Progress
from trainer.errors import DataError
from trainer.storage import hash_file, write_json


def file_digests(
    path: Path, algorithms: Iterable[str], cache_dir: Path, progress: Progress
) -> dict[str, str]:
    """Return the hex digests of the file at `path` by algorithm name ("md5", "sha256").

    Cached digests are used if path, size, inode, mtime and ctime of the file are unchanged. Raises DataError
    if the file is not accessible or changes while it is read, TemporaryError for an I/O error.
    """
    names = sorted(set(algorithms))
    identity = _identity(path)
    digests = _read_cached_digests(path, cache_dir, identity)
    missing = [name for name in names if name not in digests]
    if missing:
        digests = {**digests, **hash_with_progress(path, missing, path.name, progress)}
        if _identity(path) != identity:
            raise DataError(
                "The file changed while it was read.", "Start again when it is complete.", received=path
            )
        cache_digests(path, digests, cache_dir)
    return {name: digests[name] for name in names}


def cache_digests(path: Path, digests: dict[str, str], cache_dir: Path) -> None:
    """Cache `digests`, algorithm to hex digits, for the file's current state. Raises storage errors."""
    write_json(_cache_path(path, cache_dir), {"file": _identity(path), "digests": digests})


def hash_with_progress(
    path: Path, algorithms: Iterable[str], label: str, progress: Progress
) -> dict[str, str]:
    """Hash the file with progress output; return algorithm name to hex digest.

    Raises DataError, TemporaryError.
    """
    try:
        task = progress.start(f"Verifying {label}", path.stat().st_size, "B")
        try:
            return hash_file(path, algorithms, task.advance)
        finally:
            task.finish()
    except OSError as error:
        raise read_error(path, error) from error


def find_mismatch(path: Path, checksum: str, cache_dir: Path, progress: Progress) -> str | None:
    """Return None if the file matches `checksum` ("md5:..." or "sha256:..."), otherwise its own checksum."""
    algorithm, _, expected = checksum.partition(":")
    digest = file_digests(path, [algorithm], cache_dir, progress)[algorithm]
    return None if digest == expected.lower() else f"{algorithm}:{digest}"


def _cache_path(path: Path, cache_dir: Path) -> Path:
    location = os.fsencode(os.path.abspath(path))
    return cache_dir / "digests" / f"{hashlib.sha256(location).hexdigest()}.json"


def _identity(path: Path) -> dict[str, int]:
    # ctime as well as mtime: copy tools can reset mtime, but ctime cannot be set.
    try:
        status = path.stat()
    except OSError as error:
        raise read_error(path, error) from error
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def _read_cached_digests(path: Path, cache_dir: Path, identity: dict[str, int]) -> dict[str, str]:
    try:
        record = json.loads(_cache_path(path, cache_dir).read_bytes())
        digests = record["digests"] if record["file"] == identity else {}
        return {str(name): str(digest) for name, digest in digests.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def content_digest(items: Sequence[Item], contents: Sequence[str]) -> str:
    """Return the SHA-256, in hex, of all (split, label, name, content), sorted: equal for equal data sets."""
    lines = sorted(
        "\0".join((item.split or "", item.label, item.name, content))
        for item, content in zip(items, contents, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_digest(names: Sequence[str], labels: Sequence[str], contents: Sequence[str]) -> str:
    """Return the SHA-256, in hex, of all (label, name, content) of one split, sorted."""
    lines = sorted("\0".join(fields) for fields in zip(labels, names, contents, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
