"""File on a trusted HTTPS server, and a download without retry delays."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from helpers.https_server import HttpsServer, Served, https_server, write_ca
from trainer.data.download import RetryPolicy
from trainer.data.fetch import fetch_source
from trainer.data.progress import SilentTask, Task

DATA = random.Random(0).randbytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
MD5 = f"md5:{hashlib.md5(DATA).hexdigest()}"
LIMIT = 2**30
AT_ONCE = RetryPolicy(delays_seconds=(0.0, 0.0, 0.0, 0.0), connect_seconds=5.0, read_seconds=5.0)


class Told:
    """Progress that records its messages and tasks."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.started: list[tuple[str, int | None, str]] = []

    def start(self, label: str, total: int | None, unit: str) -> Task:
        self.started.append((label, total, unit))
        return SilentTask()

    def on_message(self, message: str) -> None:
        self.said.append(message)


def fetch(
    server: HttpsServer,
    cache: Path,
    checksum: str | None = None,
    path: str = "/digits.bin",
    told: Told | None = None,
) -> Path:
    return fetch_source(server.url(path), checksum, cache, LIMIT, told or Told(), AT_ONCE)


def kept_bytes(cache: Path) -> list[int]:
    """Return the sizes of complete and partial downloads in the cache."""
    files = (path for path in cache.glob("downloads/*/*") if path.suffix not in (".json", ".lock"))
    return [path.stat().st_size for path in files if path.name != ".lock"]


@contextmanager
def trusted_server(ca: trustme.CA, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpsServer]:
    """Run a server with /digits.bin, trusted by this process and its children."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(write_ca(ca, folder / "ca.pem")))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with https_server(ca) as server:
        server.files["/digits.bin"] = Served(DATA)
        yield server
