"""One interface to the places where a run is kept.

In: a folder's path or a gs:// URI. Out: a `Store`, whose operations mean the same on disk
and in a bucket. Names in it are relative, with '/' between their parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from trainer.exits import UsageError
from trainer.printable import shown_address

GS = "gs://"
FILE = "file://"
_NO_LABELS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Entry:
    """One file of a store."""

    name: str
    size: int
    """Bytes."""
    version: str
    """Another one for each time that the name was written; what `download` takes."""
    crc32c: str = ""
    """Base64, of all its bytes; empty where the store doesn't know it."""
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The custom metadata that it was created with, from `Store.find`; empty where the store keeps none."""


@dataclass(frozen=True)
class Content:
    """What a file held when it was read."""

    data: bytes
    version: str
    """Another one for other bytes at least; what `swap` and `remove` take."""


class Store(Protocol):
    """Files below one place.

    Every operation raises UsageError for a place or a right that isn't there, and
    TemporaryError for what outlived its retries. What is read was verified.
    """

    @property
    def uri(self) -> str:
        """Where it is, as a person would write it."""

    def below(self, prefix: str) -> Store:
        """Return the store of the names that begin with `prefix` and a slash, at which its own begin."""

    def at(self, name: str) -> str:
        """Return the path or URI of `name`."""

    def read(self, name: str) -> Content | None:
        """Return what `name` holds, None if there is no such file."""

    def find(self, name: str) -> Entry | None:
        """Return what is known of `name`, None if there is no such file."""

    def written_at(self, name: str) -> float | None:
        """Return when `name` was written, in seconds since 1970, by the clock of the place that keeps it."""

    def write(self, name: str, data: bytes) -> None:
        """Write `data` to `name`, whole or not at all."""

    def create(self, name: str, data: bytes, labels: Mapping[str, str] = _NO_LABELS) -> bool:
        """Write `data` only if there is no `name`; of several processes exactly one gets True.

        `labels` are stored as custom metadata where the store has that, and else dropped.
        """

    def swap(self, name: str, data: bytes, version: str | None) -> str | None:
        """Write `data` only if `name` is still of `version` (None: isn't there).

        Returns the version that it is of now, None if it was another one.
        """

    def remove(self, name: str, version: str | None = None) -> None:
        """Remove `name`, if it is there; with `version` only if it is still of that."""

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the files whose names start with `prefix`, sorted by name."""

    def folders(self) -> list[str]:
        """Return the names of the folders directly below, sorted."""

    def sha256(self, name: str) -> str:
        """Return the sha256, 64 hex digits, of what `name` holds; UsageError if it isn't there."""

    def require_writable(self) -> None:
        """Prove that files can be written and removed here, by doing it with a small one."""

    def upload(self, path: Path, name: str) -> None:
        """Copy the local file `path` to `name`, verified on arrival."""

    def download(self, name: str, path: Path, version: str | None = None) -> None:
        """Copy `name` to the local file `path`, which is replaced only by verified bytes.

        Raises TemporaryError if it is not of `version`, where that is given, any more.
        """


def is_bucket(uri: str) -> bool:
    """Return whether `uri` is one of a bucket, gs:// in any case."""
    return uri.lower().startswith(GS)


def open_store(uri: str) -> Store:
    """Return the store at `uri`, a path or gs://BUCKET/PREFIX; nothing is read or written yet.

    Raises UsageError for a URI of another kind.
    """
    require_uri(uri)
    if is_bucket(uri):
        # Imported here: the client takes a second to load, and most runs have no bucket.
        from trainer.storage.bucket import BucketStore

        return BucketStore(*split_uri(uri))
    from trainer.storage.folder import FolderStore

    try:
        return FolderStore(Path(without_scheme(uri)).expanduser())
    except RuntimeError:
        raise UsageError(f"There is no such user's home folder. Received: {shown_address(uri)}") from None


def require_uri(uri: str) -> None:
    """Raise UsageError for a URI of another kind than those of a store."""
    if re.match(r"(gs|s3|https?|file):(?!//)", uri.lower()):
        raise UsageError(
            f"A URI has two slashes after its scheme: gs://BUCKET/PREFIX. Received: {shown_address(uri)!r}"
        )
    if "://" in uri and not is_bucket(uri) and not uri.lower().startswith(FILE):
        raise UsageError(f"A place is a folder or gs://BUCKET/PREFIX. Received: {shown_address(uri)!r}")


def without_scheme(uri: str) -> str:
    """Return the path that a file:// URL names, its %XX decoded, and any other text as it is.

    Raises UsageError for a URL of another host.
    """
    if not uri.lower().startswith(FILE):
        return uri
    host, slash, path = uri[len(FILE) :].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise UsageError(
            f"A file URL has three slashes: file:///folder/images.zip. Received: {shown_address(uri)!r}"
        )
    return unquote(f"/{path}", errors="surrogateescape")


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and prefix, without slashes at its ends, of gs://BUCKET/PREFIX. Raises UsageError."""
    bucket, _, prefix = uri[len(GS) :].partition("/")
    if not bucket:
        raise UsageError(f"A bucket's URI is gs://BUCKET/PREFIX. Received: {shown_address(uri)!r}")
    if "@" in bucket or ":" in bucket:
        raise UsageError(
            "A bucket's URI holds no key; `gcloud auth application-default login` gets credentials, and "
            f"GOOGLE_APPLICATION_CREDENTIALS names those of a file. Received: {shown_address(uri)!r}"
        )
    return bucket, prefix.strip("/")
