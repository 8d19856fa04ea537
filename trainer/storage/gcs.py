"""A Google Cloud Storage bucket as a `Store`.

Every conditional write carries a unique writer ID as custom metadata. After a 412, the ID distinguishes a
write that succeeded but lost its response from a write that lost a race. The CRC-32C of every object that is
read is verified.
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

from trainer.compat import download_url, http_session, uploaded_name
from trainer.errors import TemporaryError, UsageError
from trainer.storage.checksums import as_text, file_crc32c
from trainer.storage.client import make_client
from trainer.storage.listing import list_entries, list_folders
from trainer.storage.local import hash_file, replacing, translate_errors
from trainer.storage.media import fetch_media
from trainer.storage.retry import explanation, is_lost_session, is_refusal, repeated
from trainer.storage.store import GS, NO_LABELS, Content, Entry
from trainer.storage.temporary import temporary_folder

TIMEOUT_SECONDS = 20.0
"""Request timeout: a request that receives no byte for this long has failed and is retried."""
RETRY_SECONDS = 60.0
"""How long one operation is retried. The client's default, 120 s, exceeds the grace period of a Spot VM."""

_WRITER = "trainer-writer"
_MOST_REFUSED = 2
_UPLOAD_CHUNK_BYTES = 32 << 20
_SMALL_BYTES = 1 << 20
_Result = TypeVar("_Result")
# Time to connect and then to send one chunk: enough at 1 MB/s, or at 5 MB/s with several uploads at once.
_SEND_SECONDS = 40.0


class BucketStore:
    """The objects of `bucket` below `prefix`."""

    def __init__(
        self, bucket: str, prefix: str, client: storage.Client | None = None, allowed: set[str] | None = None
    ) -> None:
        self.bucket, self.prefix = bucket, prefix
        self._allowed = set() if allowed is None else allowed
        """Operations that have succeeded on this bucket: a later 401 or 403 to one of them is retried."""
        self.client = client or make_client()
        try:
            self._bucket = self.client.bucket(bucket)
        except ValueError as error:
            raise UsageError(f"This is no name of a bucket: {error}", received=f"{GS}{bucket}") from None
        self._how: dict[str, Any] = {
            "retry": DEFAULT_RETRY.with_timeout(RETRY_SECONDS).with_delay(initial=0.2, maximum=10.0),
            "timeout": TIMEOUT_SECONDS,
        }
        # No retries by the client: it would resume an interrupted response, and it verifies the checksum only
        # of a response received in one piece.
        self._whole: dict[str, Any] = {"retry": None, "timeout": TIMEOUT_SECONDS, "checksum": "crc32c"}

    @property
    def uri(self) -> str:
        """The URI of the store, gs://BUCKET/PREFIX."""
        return f"{GS}{self.bucket}/{self.prefix}".rstrip("/")

    def below(self, prefix: str) -> BucketStore:
        """Return the store at `prefix` below this one; it shares the client."""
        return BucketStore(self.bucket, self._name(prefix).strip("/"), self.client, self._allowed)

    def at(self, name: str) -> str:
        """Return the URI of `name`."""
        return f"{self.uri}/{name}"

    def read(self, name: str) -> Content | None:
        """Return the content of `name`; its version is the object's generation."""
        blob = self._blob(name)
        with self._explained(name, "read"):
            try:
                data = self._repeated("read", lambda: blob.download_as_bytes(**self._whole))
            except api.NotFound:
                self._require_bucket()
                return None
        return Content(data, str(blob.generation))

    def find(self, name: str) -> Entry | None:
        """Return size, generation, CRC-32C and custom metadata of `name`."""
        blob = self._reloaded(name)
        if blob is None:
            self._require_bucket()
            return None
        return Entry(name, blob.size or 0, str(blob.generation), blob.crc32c or "", dict(blob.metadata or {}))

    def written_at(self, name: str) -> float | None:
        """Return the creation time of the current generation of `name`, by the bucket's clock."""
        blob = self._reloaded(name)
        return blob.time_created.timestamp() if blob else None

    def write(self, name: str, data: bytes) -> None:
        """Write `data` to `name`."""
        self._put(name, data)

    def create(self, name: str, data: bytes, labels: Mapping[str, str] = NO_LABELS) -> bool:
        """Write `data` only if `name` does not exist, with `labels` as custom metadata."""
        return self._swap(name, data, None, labels) is not None

    def swap(self, name: str, data: bytes, version: str | None) -> str | None:
        """Write `data` only if the generation of `name` is `version`; return the new generation."""
        return self._swap(name, data, version, NO_LABELS)

    def _swap(self, name: str, data: bytes, version: str | None, labels: Mapping[str, str]) -> str | None:
        writer = secrets.token_hex(16)
        labels = {**labels, _WRITER: writer}
        for _ in range(_MOST_REFUSED):
            try:
                return self._put(name, data, labels, if_generation_match=int(version or 0))
            except api.PreconditionFailed as error:
                refusal = error
            # A 412 also occurs when this write succeeded but its response was lost and the client retried.
            blob = self._reloaded(name)
            if blob is not None and (blob.metadata or {}).get(_WRITER) == writer:
                return str(blob.generation)
            if _generation(blob) != version:
                return None
            # The precondition holds, so the bucket refused the write for another reason.
        raise explanation(refusal, self.at(name), "written")

    def remove(self, name: str, version: str | None = None) -> None:
        """Remove `name`; with `version`, only if that is its generation."""
        condition = {} if version is None else {"if_generation_match": int(version)}
        with self._explained(name, "removed"), suppress(api.NotFound):
            try:
                self._repeated("removed", lambda: self._blob(name).delete(**condition, **self._how))
            except api.PreconditionFailed:
                if version is None or _generation(self._reloaded(name)) == version:
                    raise  # the precondition holds: refused for another reason

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the objects whose names start with `prefix`, without the placeholder objects of folders."""
        start = len(self._name(""))
        with self._explained(prefix, "listed"):
            return self._repeated(
                "listed", lambda: list_entries(self._bucket, self._name(prefix), start, self._how)
            )

    def folders(self) -> list[str]:
        """Return the names of the folders directly below, sorted."""
        with self._explained("", "listed"):
            return self._repeated("listed", lambda: list_folders(self._bucket, self._name(""), self._how))

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of the object `name`, which is downloaded to compute it."""
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
        """Upload `path` to `name`; the bucket rejects bytes that do not match their CRC-32C."""
        with self._explained(name, "written"):
            blob = self._blob(name)
            blob.chunk_size = _UPLOAD_CHUNK_BYTES
            how = self._how | {"timeout": _send_timeout()}
            crc32c = file_crc32c(path)

            def send() -> None:
                blob.crc32c = as_text(crc32c)  # the bucket verifies the upload with it
                blob.upload_from_filename(str(path), checksum=None, **how)
                _require_arrived(blob, crc32c)

            self._repeated("written", send, is_lost_session)

    def download(self, name: str, path: Path, version: str | None = None) -> None:
        """Download `name` to `path`; with `version`, only that generation."""
        condition = {} if version is None else {"if_generation_match": int(version)}
        # The client deletes the file when a download fails, so it gets a temporary one.
        with (
            translate_errors(path),
            replacing(path, durable=False) as temporary,
            self._explained(name, "read"),
        ):
            blob = self._blob(name)

            def fetch() -> None:
                url = download_url(blob, self.client, **condition)
                if not fetch_media(http_session(self.client), url, temporary, TIMEOUT_SECONDS):
                    blob.download_to_filename(str(temporary), **condition, **self._whole)

            try:
                self._repeated("read", fetch)
            except (api.PreconditionFailed, api.NotFound):
                if version is None:
                    raise
                raise TemporaryError(
                    f"{self.at(name)} was replaced or removed while it was read; try again.",
                    received=f"not {version}",
                ) from None

    def _put(self, name: str, data: bytes, labels: Mapping[str, str] = NO_LABELS, **conditions: int) -> str:
        blob = self._blob(name)
        if labels:
            blob.metadata = labels
        # `_repeated` retries the whole upload, so the client must not retry parts of it.
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
        """Return the object with its current metadata, or None if it does not exist."""
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
                return  # reading the bucket's metadata needs another permission than reading its objects
        if not found:
            raise UsageError("There is no such bucket.", received=f"{GS}{self.bucket}")

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
        """Return the result of `action`, with retries; see `repeated`. `done` is the kind of operation."""
        is_allowed = done in self._allowed
        try:
            result = repeated(
                action, RETRY_SECONDS, begins_anew, lambda error: is_allowed and is_refusal(error)
            )
        except (api.NotFound, api.PreconditionFailed):
            self._allowed.add(done)  # a request without permission gets 403 instead
            raise
        self._allowed.add(done)
        return result

    @contextmanager
    def _explained(self, name: str, done: str, is_conditional: bool = False) -> Iterator[None]:
        """Translate the client's errors into this package's; a 412 passes if the request is conditional."""
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
    """Return the timeout for connecting and sending, and the timeout for the response, in seconds."""
    return max(_SEND_SECONDS, TIMEOUT_SECONDS), TIMEOUT_SECONDS


def _require_arrived(blob: storage.Blob, crc32c: int) -> None:
    """Raise DataCorruption unless the bucket reports this CRC-32C and this name for the upload."""
    name, found = uploaded_name(blob), blob.crc32c
    if (name, found) != (blob.name, as_text(crc32c)):
        raise DataCorruption(None, f"what arrived is {name} with crc32c {found}")
