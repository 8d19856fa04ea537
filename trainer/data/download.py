"""Cached https downloads, resumed after a failure.

A downloaded file matches its checksum or, without a checksum, is the current version on the server. Each URL
has its own folder in the cache, which is locked by one process at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from trainer.data.archive import is_web_page
from trainer.data.digests import cache_digests, find_mismatch, hash_with_progress
from trainer.data.extractor import too_large
from trainer.data.http import RetryableError, get, read_body, require_content, require_https
from trainer.data.progress import Progress, Task
from trainer.errors import DataError, StoppedError, TemporaryError, TrainerError
from trainer.sanitize import shown_address
from trainer.storage import exclusive, sync_folder, translate_errors, write_all, write_json

# An attempt that makes this much progress resets the failure count: the connection is slow, not dead.
_STEP_BYTES = 1 << 20


# More digits than the length of any file, and few enough for Python to parse.
_LENGTH_DIGITS = 20


class UnreachableError(TemporaryError):
    """The network or the server failed repeatedly; a disk error is never of this type."""


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts and retry delays for a server."""

    delays_seconds: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Delay after each failed attempt; there is one more attempt than delays."""
    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    """Timeout for a server that sends no data, not for the whole transfer."""


@dataclass(frozen=True)
class Version:
    """Version of a file, from the ETag and Last-Modified headers."""

    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True)
class Transfer:
    """Download of one file from `url` to `partial`, limited to `max_bytes`."""

    url: str
    label: str
    """Name of the file in progress messages."""
    partial: Path
    max_bytes: int
    progress: Progress
    retry_policy: RetryPolicy

    def run(self, current: Version | None) -> Version | None:
        """Download the file; return its version, or None if the version `current` is up to date.

        Raises DataError (no such file, access denied, untrusted certificate, too large), UsageError (redirect
        to http), UnreachableError, TemporaryError (full disk).
        """
        failures, furthest = 0, self._size()
        with requests.Session() as session:
            while True:
                try:
                    return self._attempt(session, current)
                except RetryableError as error:
                    if self._size() >= furthest + _STEP_BYTES:
                        failures, furthest = 0, self._size()
                    self._pause(error, failures)
                    failures += 1

    def _pause(self, error: RetryableError, failures: int) -> None:
        delays = self.retry_policy.delays_seconds
        if failures == len(delays):
            can_resume = self._resumable()[0] > 0
            raise UnreachableError(
                f"The download failed {failures + 1} times in a row: {error}.",
                "Start again to resume it." if can_resume else "Try again later.",
                received=shown_address(self.url),
            ) from error
        delay = max(delays[failures], error.retry_after_seconds)
        self.progress.on_message(f"{error}; retrying in {delay:g} s")
        time.sleep(delay)

    def _attempt(self, session: requests.Session, current: Version | None) -> Version | None:
        offset, etag = self._resumable()
        headers = _conditional_headers(current)
        if offset:
            headers = {"Range": f"bytes={offset}-", "If-Range": etag}
        timeouts = (self.retry_policy.connect_seconds, self.retry_policy.read_seconds)
        with get(session, self.url, headers, timeouts) as response:
            if response.status_code == 304 and current:
                return None
            if response.status_code == 416:
                self.discard()
                raise RetryableError(
                    "the file on the server is shorter than the partial download, so it restarts"
                )
            require_content(response, self.url)
            start = self._start_of(response, offset, etag)
            self._receive(response, start)
            return Version(response.headers.get("ETag"), response.headers.get("Last-Modified"))

    def _start_of(self, response: requests.Response, offset: int, etag: str) -> int:
        """Return the file offset of the response: `offset`, or 0 for a complete file."""
        if response.status_code != 206:
            return 0
        first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        is_same = response.headers.get("ETag", etag) == etag
        if offset and is_same and first and int(first[1]) == offset:
            return offset
        self.discard()
        raise RetryableError("the file changed on the server, so the download restarts")

    def _receive(self, response: requests.Response, start: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() and len(length) < _LENGTH_DIGITS else None
        if (total or 0) > self.max_bytes:
            raise too_large(shown_address(self.url), self.max_bytes)
        if start == 0:
            # Before the first byte, so that bytes of unknown origin are never resumed.
            self.discard()
            write_json(self._state_path, {"etag": response.headers.get("ETag", ""), "total": total})
        task = self.progress.start(f"Downloading {self.label}", total, "B")
        task.advance(start)
        try:
            size = self._write(response, start, task)
        except StoppedError:
            raise  # the next start resumes from here
        except TrainerError:
            # A full disk or an endless file: the bytes are of no use.
            self.discard()
            raise
        finally:
            task.finish()
        if total is not None and size != total:
            raise RetryableError(f"the server closed the connection after {size:,} of {total:,} bytes")

    def _write(self, response: requests.Response, start: int, task: Task) -> int:
        """Write the body to the file from `start`; return the size of the file."""
        size = start
        with translate_errors(self.partial):
            file = io.FileIO(self.partial, "r+" if start else "w")
        with file:
            file.truncate(start)
            file.seek(start)
            for chunk in read_body(response, self.url):
                size += len(chunk)
                if size > self.max_bytes:
                    raise too_large(shown_address(self.url), self.max_bytes)
                with translate_errors(self.partial):
                    write_all(file, chunk)
                task.advance(len(chunk))
            with translate_errors(self.partial):
                os.fsync(file.fileno())
        return size

    # --- state of an interrupted transfer

    def discard(self) -> None:
        """Delete the partial file and its metadata."""
        with translate_errors(self.partial):
            self.partial.unlink(missing_ok=True)
            self._state_path.unlink(missing_ok=True)

    @property
    def _state_path(self) -> Path:
        return self.partial.with_name(f"{self.partial.name}.json")

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _resumable(self) -> tuple[int, str]:
        """Return the number of bytes to resume after, and their strong ETag; 0 if there are none."""
        try:
            state = json.loads(self._state_path.read_bytes())
            etag, total = str(state["etag"]), state["total"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""
        if not etag.startswith('"'):
            # A weak ETag ("W/...") does not guarantee identical bytes.
            return 0, ""
        # A complete file that was not accepted yet requests its last byte again, which also validates its
        # version.
        size = self._size()
        return (min(size, total - 1) if isinstance(total, int) and total > 0 else size), etag


def _conditional_headers(current: Version | None) -> dict[str, str]:
    if current is None:
        return {}
    pairs = {"If-None-Match": current.etag, "If-Modified-Since": current.last_modified}
    return {name: value for name, value in pairs.items() if value}


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
        folder / ".lock",
        lambda: progress.on_message(f"Waiting for another process that downloads {path.name}"),
    ):
        if checksum and path.exists() and find_mismatch(path, checksum, cache_dir, progress) is None:
            return path
        cached_version = _read_version(path) if checksum is None else None
        try:
            version = transfer.run(cached_version)
        except UnreachableError as error:
            if checksum or not path.exists():
                raise
            progress.on_message(
                f"Using the cached copy of {shown_address(url)}, which may be out of date. {error}"
            )
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
