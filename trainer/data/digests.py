"""Cached file checksums.

The digests of a file are stored in the cache together with its size, inode and modification times, so that a
large archive is hashed only once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from trainer.data.archive_errors import read_error
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
    wanted = sorted(set(algorithms))
    identity = _identity(path)
    known = _remembered(path, cache_dir, identity)
    missing = [name for name in wanted if name not in known]
    if missing:
        known = {**known, **hash_reported(path, missing, path.name, progress)}
        if _identity(path) != identity:
            raise DataError(
                "The file changed while it was read; start again when it is complete.", received=path
            )
        remember_digests(path, known, cache_dir)
    return {name: known[name] for name in wanted}


def remember_digests(path: Path, digests: dict[str, str], cache_dir: Path) -> None:
    """Cache `digests`, algorithm to hex digits, for the file's current state. Raises storage errors."""
    write_json(_memory(path, cache_dir), {"file": _identity(path), "digests": digests})


def hash_reported(path: Path, algorithms: Iterable[str], label: str, progress: Progress) -> dict[str, str]:
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


def checksum_problem(path: Path, checksum: str, cache_dir: Path, progress: Progress) -> str | None:
    """Return None if the file matches `checksum` ("md5:..." or "sha256:..."), otherwise the mismatch."""
    algorithm, _, expected = checksum.partition(":")
    received = file_digests(path, [algorithm], cache_dir, progress)[algorithm]
    if received == expected.lower():
        return None
    return f"Expected {algorithm}:{expected}. Received: {algorithm}:{received}"


def _memory(path: Path, cache_dir: Path) -> Path:
    place = os.fsencode(os.path.abspath(path))
    return cache_dir / "digests" / f"{hashlib.sha256(place).hexdigest()}.json"


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


def _remembered(path: Path, cache_dir: Path, identity: dict[str, int]) -> dict[str, str]:
    try:
        record = json.loads(_memory(path, cache_dir).read_bytes())
        digests = record["digests"] if record["file"] == identity else {}
        return {str(name): str(digest) for name, digest in digests.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
