"""Common interface to folders on local disk and to Cloud Storage.

A path or a gs:// URI opens a `Store`, whose operations behave the same in both. Names in a store are
relative, with '/' as separator.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from trainer.errors import UsageError
from trainer.sanitize import shown_address

GS = "gs://"
FILE = "file://"
NO_LABELS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Entry:
    """Metadata of one file of a store."""

    name: str
    size: int
    """Size in bytes."""
    version: str
    """Changes with every write of the name; the argument of `download`."""
    crc32c: str = ""
    """Base64 CRC-32C of the whole file; empty if the store has none."""
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Custom metadata set on creation; only `Store.find` fills it in, and only if the store supports it."""


@dataclass(frozen=True)
class Content:
    """Content of a file at the time of reading."""

    data: bytes
    version: str
    """Changes at least whenever the bytes change; the argument of `swap` and `remove`."""


class Store(Protocol):
    """Files below one path or URI.

    Every operation raises UsageError for a missing bucket, path or permission, and TemporaryError for a
    failure that outlasts its retries. All bytes read are verified.
    """

    @property
    def uri(self) -> str:
        """Path or URI of the store."""

    def below(self, prefix: str) -> Store:
        """Return the store of the names below `prefix`."""

    def at(self, name: str) -> str:
        """Return the path or URI of `name`."""

    def read(self, name: str) -> Content | None:
        """Return the content of `name`, or None if it does not exist."""

    def find(self, name: str) -> Entry | None:
        """Return the metadata of `name`, or None if it does not exist."""

    def written_at(self, name: str) -> float | None:
        """Return when `name` was written, in seconds since 1970 by the clock of the store, or None."""

    def write(self, name: str, data: bytes) -> None:
        """Write `data` to `name` atomically."""

    def create(self, name: str, data: bytes, labels: Mapping[str, str] = NO_LABELS) -> bool:
        """Write `data` only if `name` does not exist; of several processes exactly one gets True.

        `labels` are stored as custom metadata if the store supports it, otherwise dropped.
        """

    def swap(self, name: str, data: bytes, version: str | None) -> str | None:
        """Compare-and-swap: write `data` only if the version of `name` is `version` (None: does not exist).

        Returns the new version, or None if the version was a different one.
        """

    def remove(self, name: str, version: str | None = None) -> None:
        """Remove `name` if it exists; with `version`, only if that is its version."""

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the files whose names start with `prefix`, sorted by name."""

    def folders(self) -> list[str]:
        """Return the names of the folders directly below, sorted."""

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of `name` as 64 hex digits; raises UsageError if it does not exist."""

    def require_writable(self) -> None:
        """Verify that files can be written and removed, by doing so with a small one."""

    def upload(self, path: Path, name: str) -> None:
        """Copy the local file `path` to `name`; the copy is verified."""

    def download(self, name: str, path: Path, version: str | None = None) -> None:
        """Copy `name` to the local file `path`, which only verified bytes replace.

        Raises UsageError if `name` does not exist, and TemporaryError if `version` is set and no longer its
        version.
        """


def is_bucket(uri: str) -> bool:
    """Return whether `uri` is a gs:// URI, in any case."""
    return uri.lower().startswith(GS)


def read_object(store: Store, name: str) -> dict[str, Any]:
    """Return the JSON object in `name`, or an empty one if it is missing or invalid."""
    content = store.read(name)
    try:
        value = json.loads(content.data) if content else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def require_uri(uri: str) -> None:
    """Raise UsageError unless `uri` is a path, a file:// URL or a gs:// URI."""
    require_two_slashes(uri, "gs://BUCKET/PREFIX")
    if "://" in uri and not is_bucket(uri) and not uri.lower().startswith(FILE):
        raise UsageError(
            "The location must be a folder or gs://BUCKET/PREFIX.",
            "Check the URI.",
            received=f"{shown_address(uri)!r}",
        )


def require_two_slashes(uri: str, example: str) -> None:
    """Raise UsageError for a URI with one slash, such as https:/host, which would be taken for a path."""
    if re.match(r"(gs|s3|https?|ftp|file):(?!//)", uri.lower()):
        raise UsageError(
            "A URI needs two slashes after its scheme.",
            f"Write it as {example}.",
            received=f"{shown_address(uri)!r}",
        )


def without_scheme(uri: str) -> str:
    """Return the path of a file:// URL, with %XX decoded, and any other text unchanged.

    Raises UsageError for a URL of another host.
    """
    if not uri.lower().startswith(FILE):
        return uri
    host, slash, path = uri[len(FILE) :].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise UsageError(
            "A file URL needs three slashes.",
            "Write it as file:///folder/images.zip.",
            received=f"{shown_address(uri)!r}",
        )
    return unquote(f"/{path}", errors="surrogateescape")


def split_uri(uri: str) -> tuple[str, str]:
    """Return the bucket and the prefix, stripped of slashes, of gs://BUCKET/PREFIX. Raises UsageError."""
    bucket, _, prefix = uri[len(GS) :].partition("/")
    if not bucket:
        raise UsageError(
            "The URI has no bucket.", "Write it as gs://BUCKET/PREFIX.", received=f"{shown_address(uri)!r}"
        )
    if "@" in bucket or ":" in bucket:
        raise UsageError(
            "The URI of a bucket cannot contain a key.",
            "Log in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a "
            "file with credentials.",
            received=f"{shown_address(uri)!r}",
        )
    return bucket, prefix.strip("/")
