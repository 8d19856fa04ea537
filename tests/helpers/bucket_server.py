"""Local Cloud Storage server: gcp-storage-emulator plus the features it lacks.

The emulator ignores preconditions, never pages a listing, and handles one request at a time. This layer
checks `ifGenerationMatch` before it lets a request through, pages listings, and serves each client in its own
thread, one request after the other.

If STORAGE_EMULATOR_HOST is set when the tests start, they use that endpoint instead.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.exceptions import BadRequest, NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler, Response, Router
from gcp_storage_emulator.storage import Storage
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from helpers.serving import serving

BUCKET = f"photos-{secrets.token_hex(4)}"
"""Random per session, because an external endpoint may keep objects of earlier runs."""
OTHER_ENDPOINT = os.environ.get("STORAGE_EMULATOR_HOST", "")
_CONDITION = "ifGenerationMatch"


class _NotMetError(Exception):
    """The precondition of a request failed."""


class _FinishedError(Exception):
    """The upload is already complete; the argument is its ID."""


class _Storage(Storage):
    """Storage that checks the precondition of the current request before each change."""

    condition: int | None = None
    """Required generation of the object; 0 if it must not exist, None for no precondition."""

    def __init__(self, **options: Any) -> None:
        self.finished: dict[str, dict[str, Any]] = {}
        """Objects of completed resumable uploads, by upload ID."""
        self.parts: dict[str, bytearray] = {}
        """Bytes received so far of pending resumable uploads, by upload ID."""
        super().__init__(**options)

    def _write_config_to_file(self) -> None:
        """Do nothing: all data is in memory, and the file would be rewritten for each object."""

    def add_to_resumable_upload(
        self, file_id: str, content: bytes, total_size: int | None = None, expected_start: int | None = None
    ) -> bytes | None:
        """Accept a chunk again after its response was lost, as the real service does.

        Chunks are appended in place; the emulator copies all previous bytes for each chunk.
        """
        received = self.parts.setdefault(file_id, bytearray())
        start = len(received) if expected_start is None else expected_start
        if start > len(received):
            raise BadRequest(f"Content-Range starts at {start}, after {len(received)}")
        received += content[len(received) - start :]
        if total_size is None or len(received) < total_size:
            return None
        whole = bytes(self.parts.pop(file_id)[:total_size])
        super().add_to_resumable_upload(file_id, whole, total_size, 0)  # removes its entry after completion
        return whole

    def get_resumable_byte_count(self, file_id: str) -> int:
        """Return the number of bytes received so far."""
        return len(self.parts.get(file_id, b""))

    def get_resumable_file_obj(self, file_id: str) -> dict[str, Any]:
        """Return the object of a pending upload; raise `_FinishedError` if the upload is complete."""
        if file_id in self.finished:
            raise _FinishedError(file_id)
        return super().get_resumable_file_obj(file_id)  # type: ignore[no-any-return]

    def create_file(self, bucket: str, name: str, *rest: Any) -> None:
        self._check(bucket, name)
        super().create_file(bucket, name, *rest)
        if len(rest) > 2 and rest[2]:
            self.finished[rest[2]] = rest[1]

    def delete_file(self, bucket: str, name: str) -> None:
        self._check(bucket, name)
        self._hard_delete_file(bucket, name)  # a soft delete keeps the object in memory for a week

    def _check(self, bucket: str, name: str) -> None:
        try:
            found = int(self.get_file_obj(bucket, name)["generation"])
        except NotFound:
            found = 0
        if self.condition not in (None, found):
            raise _NotMetError


class BucketServer(ThreadingHTTPServer):
    """HTTP server for one emulated bucket; `asked` counts requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, page_size: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.storage = _Storage(use_memory_fs=True)
        buckets.create_bucket(BUCKET, self.storage)
        self.page_size = page_size
        self.asked = 0
        self.lock = threading.Lock()
        self.conditions: dict[str, int] = {}
        """Preconditions of pending resumable uploads, by upload ID."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of clients that were killed."""


class _Handler(RequestHandler):
    server: BucketServer
    protocol_version = "HTTP/1.1"
    timeout = 30
    # A response is sent in two parts; with Nagle's algorithm the second waits for the client's delayed ACK.
    disable_nagle_algorithm = True

    def __init__(self, request: Any, address: Any, server: BucketServer) -> None:
        super().__init__(server.storage, request, address, server)

    def _handle(self, method: str) -> None:
        query = _query(self.path)
        with self.server.lock:
            self.server.asked += 1
            asked = query.get("ifGenerationMatch")
            self.condition = self.server.conditions.get(
                query.get("upload_id", ""), None if asked is None else int(asked)
            )
            self.storage.condition = self.condition
            try:
                if method == "GET" and self.condition is not None:
                    self._check_condition()
                with _responses_changed(self):
                    Router(self).handle(method)
            except _NotMetError:
                self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            except _FinishedError as finished:
                self._answer(200, self.storage.finished[finished.args[0]])

    do_GET = partialmethod(_handle, "GET")  # noqa: N815
    do_POST = partialmethod(_handle, "POST")  # noqa: N815
    do_DELETE = partialmethod(_handle, "DELETE")  # noqa: N815
    do_PUT = partialmethod(_handle, "PUT")  # noqa: N815

    def _check_condition(self) -> None:
        """Check the precondition of a read, which the emulator ignores as well."""
        bucket, _, name = urlsplit(self.path).path.split("/b/", 1)[1].partition("/o/")
        self.storage._check(unquote(bucket), unquote(name))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def _responses_changed(handler: _Handler) -> Iterator[None]:
    """Page listings, and record the precondition of a resumable upload.

    The emulator has no hook for either, so its class is patched while the lock is held.
    """
    original = Response.close

    def close(response: Response) -> None:
        _page(handler, response)
        _name_generation(handler, response)
        location = response._headers.get("Location")
        if location and handler.condition is not None:
            handler.server.conditions[_query(location)["upload_id"]] = handler.condition
        original(response)

    Response.close = close
    try:
        yield
    finally:
        Response.close = original


def _page(handler: _Handler, response: Response) -> None:
    """Cut a listing to one page and add the token of the next."""
    if not urlsplit(handler.path).path.endswith("/o") or handler.command != "GET":
        return
    if response.status.value != 200:
        return
    query = _query(handler.path)
    listing = json.loads(response._content)
    found = {item["name"]: item for item in listing.get("items") or []}
    found |= dict.fromkeys(listing.get("prefixes") or [])  # a prefix counts like an object
    names = [name for name in sorted(found) if name > query.get("pageToken", "")]
    page = names[: handler.server.page_size]
    listing["items"] = [found[name] for name in page if found[name] is not None]
    listing["prefixes"] = [name for name in page if found[name] is None]
    if len(names) > len(page):
        listing["nextPageToken"] = page[-1]
    response.json(listing)


def _name_generation(handler: _Handler, response: Response) -> None:
    """Set the generation header of a download, as the real service does."""
    path = urlsplit(handler.path).path
    if "/download/" in path and response.status.value in (200, 206):
        bucket, _, name = path.split("/b/", 1)[1].partition("/o/")
        found = handler.storage.get_file_obj(unquote(bucket), unquote(name))
        response["X-Goog-Generation"] = found["generation"]


def _query(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


class OtherServer:
    """Existing external endpoint; its requests are not counted."""

    asked = None

    def __init__(self, address: str) -> None:
        self.address = address
        options = {"api_endpoint": address}
        client = storage.Client(project="none", client_options=options, credentials=AnonymousCredentials())
        if not client.bucket(BUCKET).exists():
            client.create_bucket(BUCKET)


@contextmanager
def bucket_server(page_size: int = 1000) -> Iterator[BucketServer | OtherServer]:
    """Serve an empty bucket named `BUCKET` within the block."""
    if OTHER_ENDPOINT:
        yield OtherServer(OTHER_ENDPOINT)
        return
    with serving(BucketServer(page_size)) as server:
        yield server
