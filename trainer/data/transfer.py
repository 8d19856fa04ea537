"""Resumable download of one https URL to a local file.

A transfer is complete when its size matches the length that the server declares, if it declares one. An
interrupted transfer resumes where it stopped, in the same process or a later one.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import requests

from trainer.data.extractor import too_large
from trainer.data.http import RetryableError, get, read_body, require_content
from trainer.data.progress import Progress, Task
from trainer.errors import StoppedError, TemporaryError, TrainerError
from trainer.sanitize import shown_address
from trainer.storage import translate_errors, write_all, write_json

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
        self.progress.say(f"{error}; retrying in {delay:g} s")
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
