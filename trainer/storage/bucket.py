"""A bucket of Google Cloud Storage as a store.

In: a bucket and a prefix. Out: the operations of `Store` on its objects. Every write says
who wrote it, so that a write whose reply was lost is told from one that lost a race; every
byte that is read is compared with the object's crc32c.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from trainer.exits import TemporaryError, UsageError
from trainer.storage.checksums import as_text, file_crc32c
from trainer.storage.client import make_client
from trainer.storage.listing import list_entries, list_folders
from trainer.storage.local import explained, hash_file, replacing
from trainer.storage.media import fetch_media
from trainer.storage.retries import explanation, is_lost_session, is_refusal, repeated
from trainer.storage.store import GS, NO_LABELS, Content, Entry
from trainer.storage.temporary import temporary_folder

TIMEOUT_SECONDS = 20.0
"""Without a byte for this long a request counts as broken and is repeated."""
RETRY_SECONDS = 60.0
"""How long one operation is repeated. The client's own 120 s outlast a spot machine's grace."""

_WRITER = "trainer-writer"
_MOST_REFUSED = 2
_UPLOAD_CHUNK_BYTES = 32 << 20
_SMALL_BYTES = 1 << 20
_Result = TypeVar("_Result")
# Connecting, and then sending one chunk: a line of 1 MB/s gets it through, and several at once a line of 5.
_SEND_SECONDS = 40.0


class BucketStore:
    """The objects of `bucket` below `prefix`."""

    def __init__(
        self, bucket: str, prefix: str, client: storage.Client | None = None, allowed: set[str] | None = None
    ) -> None:
        self.bucket, self.prefix = bucket, prefix
        self._allowed = set() if allowed is None else allowed
        """What the bucket let this process do here: a refusal after that may pass."""
        self.client = client or make_client()
        try:
            self._bucket = self.client.bucket(bucket)
        except ValueError as error:
            raise UsageError(f"This is no name of a bucket: {error} Received: {GS}{bucket}") from None
        self._how: dict[str, Any] = {
            "retry": DEFAULT_RETRY.with_timeout(RETRY_SECONDS).with_delay(initial=0.2, maximum=10.0),
            "timeout": TIMEOUT_SECONDS,
        }
        # The client would go on where a reply was cut, and compares only whole replies with their checksum.
        self._whole: dict[str, Any] = {"retry": None, "timeout": TIMEOUT_SECONDS, "checksum": "crc32c"}

    @property
    def uri(self) -> str:
        """gs://BUCKET/PREFIX."""
        return f"{GS}{self.bucket}/{self.prefix}".rstrip("/")

    def below(self, prefix: str) -> BucketStore:
        """Return the store of `prefix` below this one's, with the same client."""
        return BucketStore(self.bucket, self._name(prefix).strip("/"), self.client, self._allowed)

    def at(self, name: str) -> str:
        """Return the URI of `name`."""
        return f"{self.uri}/{name}"

    def read(self, name: str) -> Content | None:
        """Return what `name` holds; its version is its generation."""
        blob = self._blob(name)
        with self._explained(name, "read"):
            try:
                data = self._repeated("read", lambda: blob.download_as_bytes(**self._whole))
            except api.NotFound:
                self._require_bucket()
                return None
        return Content(data, str(blob.generation))

    def find(self, name: str) -> Entry | None:
        """Return size, generation and custom metadata of `name`."""
        blob = self._reloaded(name)
        if blob is None:
            self._require_bucket()
            return None
        return Entry(name, blob.size or 0, str(blob.generation), blob.crc32c or "", dict(blob.metadata or {}))

    def written_at(self, name: str) -> float | None:
        """Return when this generation of `name` was made, by the bucket's clock."""
        blob = self._reloaded(name)
        return blob.time_created.timestamp() if blob else None

    def write(self, name: str, data: bytes) -> None:
        """Write `data` to `name`."""
        self._put(name, data)

    def create(self, name: str, data: bytes, labels: Mapping[str, str] = NO_LABELS) -> bool:
        """Write `data` only if there is no `name`, with `labels` as custom metadata."""
        return self._swap(name, data, None, labels) is not None

    def swap(self, name: str, data: bytes, version: str | None) -> str | None:
        """Write `data` only if `name` is of the generation `version`; return the new one."""
        return self._swap(name, data, version, NO_LABELS)

    def _swap(self, name: str, data: bytes, version: str | None, labels: Mapping[str, str]) -> str | None:
        writer = secrets.token_hex(16)
        labels = {**labels, _WRITER: writer}
        for _ in range(_MOST_REFUSED):
            try:
                return self._put(name, data, labels, if_generation_match=int(version or 0))
            except api.PreconditionFailed as error:
                refusal = error
            # 412 comes also when this very write landed and its reply was lost.
            blob = self._reloaded(name)
            if blob is not None and (blob.metadata or {}).get(_WRITER) == writer:
                return str(blob.generation)
            if _generation(blob) != version:
                return None
            # What was asked for holds: the bucket refused the write for another reason.
        raise explanation(refusal, self.at(name), "written")

    def remove(self, name: str, version: str | None = None) -> None:
        """Remove `name`, if it is of the generation `version` where that is given."""
        condition = {} if version is None else {"if_generation_match": int(version)}
        with self._explained(name, "removed"), suppress(api.NotFound):
            try:
                self._repeated("removed", lambda: self._blob(name).delete(**condition, **self._how))
            except api.PreconditionFailed:
                if version is None or _generation(self._reloaded(name)) == version:
                    raise  # not for the version

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the objects whose names start with `prefix`, but for those that stand for folders."""
        start = len(self._name(""))
        with self._explained(prefix, "listed"):
            return self._repeated(
                "listed", lambda: list_entries(self._bucket, self._name(prefix), start, self._how)
            )

    def folders(self) -> list[str]:
        """Return the names that stand before a slash."""
        with self._explained("", "listed"):
            return self._repeated("listed", lambda: list_folders(self._bucket, self._name(""), self._how))

    def sha256(self, name: str) -> str:
        """Return the digest of the object `name`, which is downloaded for it."""
        with temporary_folder() as folder:
            path = folder / "object"
            self.download(name, path)
            return hash_file(path)["sha256"]

    def require_writable(self) -> None:
        """Write a small object and delete it."""
        name = f".trainer-{secrets.token_hex(8)}.tmp"
        self.write(name, b"can this be written?")
        self.remove(name)

    def upload(self, path: Path, name: str) -> None:
        """Copy `path` to `name`; the bucket refuses bytes that differ from their crc32c."""
        with self._explained(name, "written"):
            blob = self._blob(name)
            blob.chunk_size = _UPLOAD_CHUNK_BYTES
            how = self._how | {"timeout": _send_timeout()}
            crc32c = file_crc32c(path)

            def send() -> None:
                blob.crc32c = as_text(crc32c)  # the bucket compares what arrives with it
                blob.upload_from_filename(str(path), checksum=None, **how)
                _require_arrived(blob, crc32c)

            self._repeated("written", send, is_lost_session)

    def download(self, name: str, path: Path, version: str | None = None) -> None:
        """Copy `name` to `path`, of the generation `version` where that is given."""
        condition = {} if version is None else {"if_generation_match": int(version)}
        # The client deletes the file that it fails to fill: it gets one of its own.
        with explained(path), replacing(path, durable=False) as temporary, self._explained(name, "read"):
            blob = self._blob(name)

            def fetch() -> None:
                url = blob._get_download_url(self.client, **condition)
                if not fetch_media(self.client._http, url, temporary, TIMEOUT_SECONDS):
                    blob.download_to_filename(str(temporary), **condition, **self._whole)

            try:
                self._repeated("read", fetch)
            except (api.PreconditionFailed, api.NotFound):
                if version is None:
                    raise
                raise TemporaryError(
                    f"{self.at(name)} was replaced or removed while it was read; try again. "
                    f"Received: not {version}"
                ) from None

    def _put(self, name: str, data: bytes, labels: Mapping[str, str] = NO_LABELS, **conditions: int) -> str:
        blob = self._blob(name)
        if labels:
            blob.metadata = labels
        # The whole is repeated, and so the client needn't repeat its parts.
        how = {"retry": None, "timeout": _send_timeout() if len(data) > _SMALL_BYTES else TIMEOUT_SECONDS}
        with self._explained(name, "written", is_conditional=bool(conditions)):

            def send() -> None:
                blob.upload_from_string(
                    data, "application/octet-stream", checksum="crc32c", **conditions, **how
                )
                _require_arrived(blob, int(google_crc32c.value(data)))

            self._repeated("written", send)
        return str(blob.generation)

    def _reloaded(self, name: str) -> storage.Blob | None:
        """Return the object with all that the bucket knows of it, None if it isn't there."""
        blob = self._blob(name)
        with self._explained(name, "read"):
            try:
                self._repeated("read", lambda: blob.reload(**self._how))
            except api.NotFound:
                return None
        return blob

    def _require_bucket(self) -> None:
        with self._explained("", "read"):
            try:
                found = self._bucket.exists(**self._how)
            except (api.Forbidden, api.Unauthorized):
                return  # to look at the bucket needs another right than to read its objects
        if not found:
            raise UsageError(f"There is no such bucket. Received: {GS}{self.bucket}")

    def _blob(self, name: str) -> storage.Blob:
        return self._bucket.blob(self._name(name))

    def _name(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _repeated(
        self,
        done: str,
        action: Callable[[], _Result],
        begins_anew: Callable[[Exception], bool] = lambda error: False,
    ) -> _Result:
        """Return what `action` returns, by which something is `done`; see `repeated`."""
        is_allowed = done in self._allowed
        try:
            result = repeated(
                action, RETRY_SECONDS, begins_anew, lambda error: is_allowed and is_refusal(error)
            )
        except (api.NotFound, api.PreconditionFailed):
            self._allowed.add(done)  # it looked: who has no right gets 403
            raise
        self._allowed.add(done)
        return result

    @contextmanager
    def _explained(self, name: str, done: str, is_conditional: bool = False) -> Iterator[None]:
        """Turn the client's errors into those of this package; where a condition was sent, 412 passes."""
        try:
            yield
        except (
            api.GoogleAPIError,
            auth.GoogleAuthError,
            DataCorruption,
            InvalidResponse,
            requests.RequestException,
        ) as error:
            if is_conditional and isinstance(error, api.PreconditionFailed):
                raise
            raise explanation(error, self.at(name), done) from error


def _generation(blob: storage.Blob | None) -> str | None:
    return None if blob is None else str(blob.generation)


def _send_timeout() -> tuple[float, float]:
    """Return the seconds for connecting and sending, and those for the reply."""
    return max(_SEND_SECONDS, TIMEOUT_SECONDS), TIMEOUT_SECONDS


def _require_arrived(blob: storage.Blob, crc32c: int) -> None:
    """Raise DataCorruption unless the bucket says that it holds these bytes under this name."""
    name, found = blob._properties.get("name"), blob.crc32c
    if (name, found) != (blob.name, as_text(crc32c)):
        raise DataCorruption(None, f"what arrived is {name} with crc32c {found}")
