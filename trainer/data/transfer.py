"""One https URL to one local file, whatever the network does meanwhile.

In: a URL, a place for the file, and what is known of an earlier version. Out: the file,
complete by the server's own count, and the version that the server calls it. A transfer
that broke off goes on where it stopped, in this process or the next.
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

from trainer.data.http import Broken, get, read_body, require_content
from trainer.data.members import too_large
from trainer.data.progress import Progress, Task
from trainer.exits import StoppedError, TemporaryError, TrainerError
from trainer.printable import shown_address
from trainer.storage import explained, write_all, write_json

# A try that brought this much further doesn't count as failed: the link is poor, not dead.
_STEP_BYTES = 1 << 20


# More digits than any file's length has, and few enough for Python to read.
_LENGTH_DIGITS = 20


class UnreachableError(TemporaryError):
    """The network or the server failed, again and again; the disk did not."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server."""

    delays_seconds: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """The pause after each failed try; one more try than pauses."""
    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    """Of silence, not of the whole transfer."""


@dataclass(frozen=True)
class Version:
    """What the server calls the bytes it sent."""

    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True)
class Transfer:
    """One file to bring: from `url` to `partial`, and no more than `max_bytes` of it."""

    url: str
    label: str
    """What the user is told is downloaded."""
    partial: Path
    max_bytes: int
    progress: Progress
    patience: Patience

    def run(self, known: Version | None) -> Version | None:
        """Bring the file; return its version, or None when the server says that `known` is still current.

        Raises DataError (no such file, access refused, untrusted certificate, too large),
        UsageError (a redirect to http), UnreachableError, TemporaryError (full disk).
        """
        failures, furthest = 0, self._size()
        with requests.Session() as session:
            while True:
                try:
                    return self._attempt(session, known)
                except Broken as broken:
                    if self._size() >= furthest + _STEP_BYTES:
                        failures, furthest = 0, self._size()
                    self._pause(broken, failures)
                    failures += 1

    def _pause(self, broken: Broken, failures: int) -> None:
        delays = self.patience.delays_seconds
        if failures == len(delays):
            resumes = self._resumable()[0] > 0
            raise UnreachableError(
                f"The download failed {failures + 1} times in a row: {broken}. "
                f"{'Start again to go on from what has arrived' if resumes else 'Try again later'}. "
                f"Received: {shown_address(self.url)}"
            ) from broken
        delay = max(delays[failures], broken.retry_after_seconds)
        self.progress.say(f"{broken}; trying again in {delay:g} s")
        time.sleep(delay)

    def _attempt(self, session: requests.Session, known: Version | None) -> Version | None:
        offset, etag = self._resumable()
        headers = _conditions(known)
        if offset:
            headers = {"Range": f"bytes={offset}-", "If-Range": etag}
        timeouts = (self.patience.connect_seconds, self.patience.read_seconds)
        with get(session, self.url, headers, timeouts) as response:
            if response.status_code == 304 and known:
                return None
            if response.status_code == 416:
                self.discard()
                raise Broken("the server has less of the file than had arrived, so it starts again")
            require_content(response, self.url)
            start = self._continued(response, offset, etag)
            self._receive(response, start)
            return Version(response.headers.get("ETag"), response.headers.get("Last-Modified"))

    def _continued(self, response: requests.Response, offset: int, etag: str) -> int:
        """Return where the answer begins in the file: at `offset`, or at 0 for a whole new file."""
        if response.status_code != 206:
            return 0
        first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        same = response.headers.get("ETag", etag) == etag
        if offset and same and first and int(first[1]) == offset:
            return offset
        self.discard()
        raise Broken("the file changed on the server, so it starts again")

    def _receive(self, response: requests.Response, start: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() and len(length) < _LENGTH_DIGITS else None
        if (total or 0) > self.max_bytes:
            raise too_large(shown_address(self.url), self.max_bytes)
        if start == 0:
            # Before the first byte: bytes of unknown origin are never continued.
            self.discard()
            write_json(self._notes, {"etag": response.headers.get("ETag", ""), "total": total})
        task = self.progress.start(f"Downloading {self.label}", total, "B")
        task.advance(start)
        try:
            size = self._write(response, start, task)
        except StoppedError:
            raise  # the next start goes on from here
        except TrainerError:
            # A full disk or a file without end: to keep the bytes would help nobody.
            self.discard()
            raise
        finally:
            task.finish()
        if total is not None and size != total:
            raise Broken(f"the server closed after {size:,} of {total:,} bytes")

    def _write(self, response: requests.Response, start: int, task: Task) -> int:
        """Write the body to the file from `start` on; return the file's size."""
        size = start
        with explained(self.partial):
            file = io.FileIO(self.partial, "r+" if start else "w")
        with file:
            file.truncate(start)
            file.seek(start)
            for chunk in read_body(response, self.url):
                size += len(chunk)
                if size > self.max_bytes:
                    raise too_large(shown_address(self.url), self.max_bytes)
                with explained(self.partial):
                    write_all(file, chunk)
                task.advance(len(chunk))
            with explained(self.partial):
                os.fsync(file.fileno())
        return size

    # --- what is kept of a transfer that broke off

    def discard(self) -> None:
        """Forget what has arrived."""
        with explained(self.partial):
            self.partial.unlink(missing_ok=True)
            self._notes.unlink(missing_ok=True)

    @property
    def _notes(self) -> Path:
        return self.partial.with_name(f"{self.partial.name}.json")

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _resumable(self) -> tuple[int, str]:
        """Return how many bytes there are to go on from, and their strong ETag; 0 if there are none."""
        try:
            notes = json.loads(self._notes.read_bytes())
            etag, total = str(notes["etag"]), notes["total"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""
        if not etag.startswith('"'):
            # A weak one ("W/...") doesn't promise the same bytes.
            return 0, ""
        # A complete file whose end wasn't noted asks for its last byte again, which also proves its version.
        size = self._size()
        return (min(size, total - 1) if isinstance(total, int) and total > 0 else size), etag


def _conditions(known: Version | None) -> dict[str, str]:
    if known is None:
        return {}
    pairs = {"If-None-Match": known.etag, "If-Modified-Since": known.last_modified}
    return {name: value for name, value in pairs.items() if value}
