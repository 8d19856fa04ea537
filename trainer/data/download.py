"""Cached https downloads.

A downloaded file matches its checksum or, without a checksum, is the current version on the server. Each URL
has its own folder in the cache, which is locked by one process at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainer.data.archive import is_web_page
from trainer.data.digests import cache_digests, find_mismatch, hash_with_progress
from trainer.data.http import require_https
from trainer.data.progress import Progress
from trainer.data.transfer import RetryPolicy, Transfer, UnreachableError, Version
from trainer.errors import DataError
from trainer.sanitize import shown_address
from trainer.storage import exclusive, sync_folder, translate_errors, write_json


def download(
    url: str,
    checksum: str | None,
    cache_dir: Path,
    max_bytes: int,
    progress: Progress,
    retry_policy: RetryPolicy,
) -> Path:
    """Return the local copy of `url`; download it if it is missing or outdated.

    If the copy matches `checksum` ("md5:..." or "sha256:..."), no request is made. Without a checksum, the
    copy is revalidated with the server; if the server is unreachable, the copy is used and a message is
    printed. A file larger than `max_bytes` is rejected. Raises DataError, UsageError, TemporaryError.
    """
    require_https(url)
    folder = cache_dir / "downloads" / hashlib.sha256(url.encode()).hexdigest()
    path = folder / _file_name(url)
    transfer = Transfer(url, path.name, folder / ".partial", max_bytes, progress, retry_policy)
    with exclusive(
        folder / ".lock", lambda: progress.say(f"Waiting for another process that downloads {path.name}")
    ):
        if checksum and path.exists() and find_mismatch(path, checksum, cache_dir, progress) is None:
            return path
        cached_version = _read_version(path) if checksum is None else None
        try:
            version = transfer.run(cached_version)
        except UnreachableError as error:
            if checksum or not path.exists():
                raise
            progress.say(f"Using the cached copy of {shown_address(url)}, which may be out of date. {error}")
            return path
        if version is not None:
            _accept(transfer, path, version, checksum, cache_dir)
        return path


def forget_version(path: Path) -> None:
    """Delete the recorded version of the damaged file `path`, to force a new download."""
    with translate_errors(path):
        _record(path).unlink(missing_ok=True)


def _accept(transfer: Transfer, path: Path, version: Version, checksum: str | None, cache_dir: Path) -> None:
    """Verify the download, then move it to `path` atomically."""
    if is_web_page(transfer.partial):
        transfer.discard()
        raise DataError(
            "The server sent a web page instead of the file, such as a sign-in or confirmation page.",
            "Use the address of the file itself, or download it in a browser and use its path.",
            received=shown_address(transfer.url),
        )
    algorithm, _, expected = (checksum or "").partition(":")
    algorithms = {"sha256", algorithm} - {""}
    digests = hash_with_progress(transfer.partial, algorithms, path.name, transfer.progress)
    if checksum and digests[algorithm] != expected.lower():
        transfer.discard()
        address = shown_address(transfer.url)
        raise DataError(
            f"The download has the wrong checksum and was deleted: {address}. Expected {checksum}.",
            "Check the address and the checksum.",
            received=f"{algorithm}:{digests[algorithm]}",
        )
    with translate_errors(path):
        # In this order, the new bytes are never paired with the old version.
        _record(path).unlink(missing_ok=True)
        os.replace(transfer.partial, path)
        sync_folder(path.parent)
    transfer.discard()
    cache_digests(path, digests, cache_dir)
    write_json(
        _record(path),
        {"url": shown_address(transfer.url), "etag": version.etag, "last_modified": version.last_modified},
    )


def _read_version(path: Path) -> Version | None:
    try:
        record = json.loads(_record(path).read_bytes())
        return Version(record["etag"], record["last_modified"]) if path.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(path: Path) -> Path:
    return path.with_name(".record.json")


def _file_name(url: str) -> str:
    """Return the last part of the URL's path as a safe file name with the same extension."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", unquote(urlsplit(url).path.rsplit("/", 1)[-1]))
    # Names with a leading dot are reserved for the cache itself.
    return name[-100:].lstrip(".") or "download"
