"""A bucket on this machine: gcp-storage-emulator, and what it lacks of the real service.

The emulator ignores preconditions, never pages a listing, and takes one request at a time. The
layer here checks `ifGenerationMatch` before it lets a request through, pages listings, and
serves every client in a thread of its own, one request after the other.

Where STORAGE_EMULATOR_HOST is set when the tests begin, they use that endpoint instead.
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
from serving import serving

BUCKET = f"photos-{secrets.token_hex(4)}"
"""Another one each time: an endpoint of somebody else's may keep what is in it."""
OTHER_ENDPOINT = os.environ.get("STORAGE_EMULATOR_HOST", "")
_CONDITION = "ifGenerationMatch"


class _NotMetError(Exception):
    """The condition of a request isn't met."""


class _FinishedError(Exception):
    """The upload is complete already; the argument is its id."""


class _Storage(Storage):
    """Looks at the condition of the request under way before it changes anything."""

    condition: int | None = None
    """The generation that the object must have; 0 if it must not be there."""

    def __init__(self, **options: Any) -> None:
        self.finished: dict[str, dict[str, Any]] = {}
        """Objects that came in several requests, by the id of the upload."""
        self.parts: dict[str, bytearray] = {}
        """What came so far of others."""
        super().__init__(**options)

    def _write_config_to_file(self) -> None:
        """Write nothing: all of it is in memory, and it would be written anew with each object."""

    def add_to_resumable_upload(
        self, file_id: str, content: bytes, total_size: int | None = None, expected_start: int | None = None
    ) -> bytes | None:
        """Take a chunk that came before, and whose reply was lost, as the real service does.

        And append it in place: the emulator copies all that came before with each chunk.
        """
        received = self.parts.setdefault(file_id, bytearray())
        start = len(received) if expected_start is None else expected_start
        if start > len(received):
            raise BadRequest(f"Content-Range starts at {start}, after {len(received)}")
        received += content[len(received) - start :]
        if total_size is None or len(received) < total_size:
            return None
        whole = bytes(self.parts.pop(file_id)[:total_size])
        super().add_to_resumable_upload(file_id, whole, total_size, 0)  # what is removed when it is done
        return whole

    def get_resumable_byte_count(self, file_id: str) -> int:
        """Count what came so far."""
        return len(self.parts.get(file_id, b""))

    def get_resumable_file_obj(self, file_id: str) -> dict[str, Any]:
        """Know an upload that is complete, too."""
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
        self._hard_delete_file(bucket, name)  # the other kind is kept in memory for a week

    def _check(self, bucket: str, name: str) -> None:
        try:
            found = int(self.get_file_obj(bucket, name)["generation"])
        except NotFound:
            found = 0
        if self.condition not in (None, found):
            raise _NotMetError


class BucketServer(ThreadingHTTPServer):
    """Serves one emulated store; `asked` counts requests."""

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
        """Of resumable uploads under way, by their id."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


class _Handler(RequestHandler):
    server: BucketServer
    protocol_version = "HTTP/1.1"
    timeout = 30
    # A reply is sent in two parts, of which the second would wait for the client's delayed acknowledgement.
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
        """Of a read: the emulator looks at conditions no more there than elsewhere."""
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
    """Page listings, and note the condition of an upload that takes several requests.

    The emulator has no place for either, so its class is changed while the lock is held.
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
    """Cut a listing to one page, with a token for the next."""
    if not urlsplit(handler.path).path.endswith("/o") or handler.command != "GET":
        return
    if response.status.value != 200:
        return
    query = _query(handler.path)
    listing = json.loads(response._content)
    found = {item["name"]: item for item in listing.get("items") or []}
    found |= dict.fromkeys(listing.get("prefixes") or [])  # a folder takes the room of an object
    names = [name for name in sorted(found) if name > query.get("pageToken", "")]
    page = names[: handler.server.page_size]
    listing["items"] = [found[name] for name in page if found[name] is not None]
    listing["prefixes"] = [name for name in page if found[name] is None]
    if len(names) > len(page):
        listing["nextPageToken"] = page[-1]
    response.json(listing)


def _name_generation(handler: _Handler, response: Response) -> None:
    """Say which generation a download is of, as the real service does."""
    path = urlsplit(handler.path).path
    if "/download/" in path and response.status.value in (200, 206):
        bucket, _, name = path.split("/b/", 1)[1].partition("/o/")
        found = handler.storage.get_file_obj(unquote(bucket), unquote(name))
        response["X-Goog-Generation"] = found["generation"]


def _query(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


class OtherServer:
    """An endpoint that is there already; it doesn't tell how many requests it got."""

    asked = None

    def __init__(self, address: str) -> None:
        self.address = address
        options = {"api_endpoint": address}
        client = storage.Client(project="none", client_options=options, credentials=AnonymousCredentials())
        if not client.bucket(BUCKET).exists():
            client.create_bucket(BUCKET)


@contextmanager
def bucket_server(page_size: int = 1000) -> Iterator[BucketServer | OtherServer]:
    """Serve an empty bucket named `BUCKET` for the time of the block."""
    if OTHER_ENDPOINT:
        yield OtherServer(OTHER_ENDPOINT)
        return
    with serving(BucketServer(page_size)) as server:
        yield server
