"""A Google Cloud Storage bucket as a `Store`, and its client.

Every conditional write carries a unique writer ID as custom metadata. After a 412, the ID distinguishes a
write that succeeded but lost its response from a write that lost a race. The CRC-32C of every object that is
read is verified.
"""

from __future__ import annotations

import re
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
from trainer.storage.local import hash_file, replacing, translate_errors, write_all
from trainer.storage.proxies import require_proxy
from trainer.storage.retry import is_lost_session, is_refusal, retried, translate_error
from trainer.storage.store import GS, NO_LABELS, Content, Entry
from trainer.storage.temporary import temporary_folder

_CONNECTIONS = 64
_NO_CREDENTIALS = "default credentials were not found"
"""Part of the google.auth error message if there are no credentials at all."""


def make_client() -> storage.Client:
    """Return a client with application default credentials, or an anonymous client if there are none.

    The client library itself honours STORAGE_EMULATOR_HOST. Raises UsageError if the credentials file or the
    proxy is invalid.
    """
    try:
        # Objects need no project, and user credentials often have none.
        client = storage.Client(project="none")
    except auth.DefaultCredentialsError as error:
        if _NO_CREDENTIALS not in str(error):
            raise UsageError(
                "The credentials in the file of GOOGLE_APPLICATION_CREDENTIALS are invalid.",
                "Correct the variable, or unset it to use a public bucket.",
                received=f"{str(error)[:200]}",
            ) from None
        # A public bucket needs no credentials.
        client = storage.Client.create_anonymous_client()
    # Proxies and certificates are the same for every request. Reading them from the environment each time
    # took a sixth of the time of a small request.
    session = http_session(client)
    require_proxy(session, client.api_endpoint)
    settings = session.merge_environment_settings(client.api_endpoint, {}, None, None, None)
    session.proxies, session.verify, session.trust_env = settings["proxies"], settings["verify"], False
    adapter = requests.adapters.HTTPAdapter(pool_connections=_CONNECTIONS, pool_maxsize=_CONNECTIONS)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    return client


TIMEOUT_SECONDS = 20.0
"""Request timeout: a request that receives no byte for this long has failed and is retried."""
RETRY_SECONDS = 60.0
"""How long one operation is retried. The client's default, 120 s, exceeds the grace period of a Spot VM."""

_WRITER = "trainer-writer"
_MAX_REFUSED = 2
_UPLOAD_CHUNK_BYTES = 32 << 20
_SMALL_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_ENTRY_FIELDS = "items(name,size,generation,crc32c),nextPageToken"
_CRC32C_HEADER = re.compile(r"crc32c=([A-Za-z0-9+/=]+)")
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
            raise UsageError(
                f"The bucket name is invalid: {error}", "Check the URI.", received=f"{GS}{bucket}"
            ) from None
        self._options: dict[str, Any] = {
            "retry": DEFAULT_RETRY.with_timeout(RETRY_SECONDS).with_delay(initial=0.2, maximum=10.0),
            "timeout": TIMEOUT_SECONDS,
        }
        # No retries by the client: it would resume an interrupted response, and it verifies the checksum only
        # of a response received in one piece.
        self._download_options: dict[str, Any] = {
            "retry": None,
            "timeout": TIMEOUT_SECONDS,
            "checksum": "crc32c",
        }

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
        with self._translated(name, "read"):
            try:
                data = self._retried("read", lambda: blob.download_as_bytes(**self._download_options))
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
        for _ in range(_MAX_REFUSED):
            try:
                return self._put(name, data, labels, if_generation_match=int(version or 0))
            except api.PreconditionFailed as error:
                refused = error
            # A 412 also occurs when this write succeeded but its response was lost and the client retried.
            blob = self._reloaded(name)
            if blob is not None and (blob.metadata or {}).get(_WRITER) == writer:
                return str(blob.generation)
            if _generation(blob) != version:
                return None
            # The precondition holds, so the bucket refused the write for another reason.
        raise translate_error(refused, self.at(name), "written")

    def remove(self, name: str, version: str | None = None) -> None:
        """Remove `name`; with `version`, only if that is its generation."""
        condition = {} if version is None else {"if_generation_match": int(version)}
        with self._translated(name, "removed"), suppress(api.NotFound):
            try:
                self._retried("removed", lambda: self._blob(name).delete(**condition, **self._options))
            except api.PreconditionFailed:
                if version is None or _generation(self._reloaded(name)) == version:
                    raise  # the precondition holds: refused for another reason

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the objects whose names start with `prefix`, without the placeholder objects of folders."""
        start = len(self._name(""))
        with self._translated(prefix, "listed"):
            return self._retried(
                "listed", lambda: _list_entries(self._bucket, self._name(prefix), start, self._options)
            )

    def folders(self) -> list[str]:
        """Return the names of the folders directly below, sorted."""
        with self._translated("", "listed"):
            return self._retried("listed", lambda: _list_folders(self._bucket, self._name(""), self._options))

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of the object `name`, which is downloaded to compute it."""
        with temporary_folder() as folder:
            path = folder / "object"
            self.download(name, path)
            return hash_file(path)["sha256"]

    def require_writable(self) -> None:
        """Write a small object and delete it."""
        name = f".trainer-{secrets.token_hex(8)}.tmp"
        self.write(name, b"write test")
        self.remove(name)

    def upload(self, path: Path, name: str) -> None:
        """Upload `path` to `name`; the bucket rejects bytes that do not match their CRC-32C."""
        with self._translated(name, "written"):
            blob = self._blob(name)
            blob.chunk_size = _UPLOAD_CHUNK_BYTES
            options = self._options | {"timeout": _send_timeout()}
            crc32c = file_crc32c(path)

            def send() -> None:
                blob.crc32c = as_text(crc32c)  # the bucket verifies the upload with it
                blob.upload_from_filename(str(path), checksum=None, **options)
                _require_arrived(blob, crc32c)

            self._retried("written", send, is_lost_session)

    def download(self, name: str, path: Path, version: str | None = None) -> None:
        """Download `name` to `path`; with `version`, only that generation."""
        condition = {} if version is None else {"if_generation_match": int(version)}
        # The client deletes the file when a download fails, so it gets a temporary one.
        with (
            translate_errors(path),
            replacing(path, durable=False) as temporary,
            self._translated(name, "read"),
        ):
            blob = self._blob(name)

            def fetch() -> None:
                url = download_url(blob, self.client, **condition)
                if not fetch_media(http_session(self.client), url, temporary, TIMEOUT_SECONDS):
                    blob.download_to_filename(str(temporary), **condition, **self._download_options)

            try:
                self._retried("read", fetch)
            except (api.PreconditionFailed, api.NotFound):
                if version is None:
                    raise
                raise TemporaryError(
                    f"{self.at(name)} was replaced or removed while it was read.",
                    "Try again.",
                    received=f"not version {version}",
                ) from None

    def _put(self, name: str, data: bytes, labels: Mapping[str, str] = NO_LABELS, **conditions: int) -> str:
        blob = self._blob(name)
        if labels:
            blob.metadata = labels
        # `_retried` retries the whole upload, so the client must not retry parts of it.
        options = {"retry": None, "timeout": _send_timeout() if len(data) > _SMALL_BYTES else TIMEOUT_SECONDS}
        with self._translated(name, "written", is_conditional=bool(conditions)):

            def send() -> None:
                blob.upload_from_string(
                    data, "application/octet-stream", checksum="crc32c", **conditions, **options
                )
                _require_arrived(blob, int(google_crc32c.value(data)))

            self._retried("written", send)
        return str(blob.generation)

    def _reloaded(self, name: str) -> storage.Blob | None:
        """Return the object with its current metadata, or None if it does not exist."""
        blob = self._blob(name)
        with self._translated(name, "read"):
            try:
                self._retried("read", lambda: blob.reload(**self._options))
            except api.NotFound:
                return None
        return blob

    def _require_bucket(self) -> None:
        with self._translated("", "read"):
            try:
                exists = self._bucket.exists(**self._options)
            except (api.Forbidden, api.Unauthorized):
                return  # reading the bucket's metadata needs another permission than reading its objects
        if not exists:
            uri = f"{GS}{self.bucket}"
            raise UsageError(
                "The bucket does not exist.",
                f"Create it with `gcloud storage buckets create {uri}`, or check the name.",
                received=uri,
            )

    def _blob(self, name: str) -> storage.Blob:
        return self._bucket.blob(self._name(name))

    def _name(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _retried(
        self,
        done: str,
        action: Callable[[], _Result],
        restarts: Callable[[Exception], bool] = lambda error: False,
    ) -> _Result:
        """Return the result of `action`, with retries; see `retried`. `done` is the kind of operation."""
        is_allowed = done in self._allowed
        try:
            result = retried(action, RETRY_SECONDS, restarts, lambda error: is_allowed and is_refusal(error))
        except (api.NotFound, api.PreconditionFailed):
            self._allowed.add(done)  # a request without permission gets 403 instead
            raise
        self._allowed.add(done)
        return result

    @contextmanager
    def _translated(self, name: str, done: str, is_conditional: bool = False) -> Iterator[None]:
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
            raise translate_error(error, self.at(name), done) from error


def _generation(blob: storage.Blob | None) -> str | None:
    return None if blob is None else str(blob.generation)


def _send_timeout() -> tuple[float, float]:
    """Return the timeout for connecting and sending, and the timeout for the response, in seconds."""
    return max(_SEND_SECONDS, TIMEOUT_SECONDS), TIMEOUT_SECONDS


def _require_arrived(blob: storage.Blob, crc32c: int) -> None:
    """Raise DataCorruption unless the bucket reports this CRC-32C and this name for the upload."""
    name, received = uploaded_name(blob), blob.crc32c
    if (name, received) != (blob.name, as_text(crc32c)):
        raise DataCorruption(None, f"the bucket received {name} with crc32c {received}")


def _list_entries(bucket: storage.Bucket, prefix: str, start: int, options: dict[str, Any]) -> list[Entry]:
    """Return the objects whose names start with `prefix`, sorted by name.

    The first `start` characters are cut off the names. Placeholder objects of folders are skipped. An object
    without a size has size 0. Raises the client's errors.
    """
    blobs = bucket.client.list_blobs(bucket, prefix=prefix, fields=_ENTRY_FIELDS, **options)
    entries = [
        Entry(blob.name[start:], blob.size or 0, str(blob.generation), blob.crc32c or "")
        for blob in blobs
        if not blob.name[start:].endswith("/")
    ]
    return sorted(entries, key=lambda entry: entry.name)


def _list_folders(bucket: storage.Bucket, prefix: str, options: dict[str, Any]) -> list[str]:
    """Return the path components that follow `prefix` up to the next slash, sorted.

    The bucket groups the names itself, so the objects are not listed. Raises the client's errors.
    """
    fields = "prefixes,nextPageToken"
    listing = bucket.client.list_blobs(bucket, prefix=prefix, delimiter="/", fields=fields, **options)
    folders = {folder for page in listing.pages for folder in page.prefixes}
    return sorted(folder[len(prefix) :].rstrip("/") for folder in folders)


def fetch_media(session: Any, url: str, path: Path, timeout_seconds: float) -> bool:
    """Download `url` to `path`; return False, with nothing written, if the client must download it.

    The client's own download takes twice the CPU time, which is the bottleneck for many small objects. It is
    still needed for an object stored compressed, which the client decompresses, or without a known
    CRC-32C. Raises the errors of the client's download; DataCorruption on a checksum mismatch.
    """
    # Request the bytes as stored: after decompressive transcoding they would not match the checksum.
    headers = {"Accept-Encoding": "gzip"}
    with session.get(url, headers=headers, timeout=timeout_seconds, stream=True) as response:
        if response.status_code != 200:
            raise api.from_http_response(response)  # type: ignore[no-untyped-call]
        expected = _CRC32C_HEADER.search(response.headers.get("X-Goog-Hash", ""))
        if expected is None or response.headers.get("Content-Encoding"):
            return False
        crc32c = 0
        with open(path, "wb", buffering=0) as file:
            while chunk := response.raw.read(_CHUNK_BYTES):
                crc32c = int(google_crc32c.extend(crc32c, chunk))
                write_all(file, chunk)
    if as_text(crc32c) != expected[1]:
        raise DataCorruption(None, f"expected crc32c {expected[1]}, received {as_text(crc32c)}")
    return True
