"""Local HTTPS server with its own certificate authority and configurable faults."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

from helpers.serving import serving


@dataclass
class Fault:
    """Fault of one response: an error status, a truncated body, or a stall."""

    status: int = 0
    location: str = ""
    close_after: int | None = None
    silent_seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Served:
    """A file on the server."""

    data: bytes
    etag: str = '"v1"'
    ranges: bool = True
    honours_if_range: bool = True
    says_length: bool = True
    last_modified: str = ""


@dataclass
class Asked:
    """A received request."""

    path: str
    headers: dict[str, str]
    status: int = 0


class HttpsServer(ThreadingHTTPServer):
    """Server for `files`; each request first takes one of `faults`, until they are used up."""

    daemon_threads = True
    block_on_close = True

    def __init__(self, ca: trustme.CA, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.slowness_seconds = 0.0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(name).configure_cert(self._context)

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}{path}"

    def statuses(self) -> list[int]:
        return [asked.status for asked in self.asked]

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        # Do the handshake in the thread of the request, not in the accept loop.
        wrapped = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return wrapped, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: clients that reject the certificate disconnect, as the tests expect."""


class _Handler(BaseHTTPRequestHandler):
    server: HttpsServer

    def do_GET(self) -> None:
        asked = Asked(self.path, dict(self.headers))
        self.server.asked.append(asked)
        fault = self.server.faults.pop(0) if self.server.faults else Fault()
        file = self.server.files.get(self.path)
        if fault.status or file is None:
            asked.status = fault.status or 404
            self._head(asked.status, {"Content-Length": "0", "Location": fault.location, **fault.headers})
            return
        asked.status, headers, body = _answer(file, asked.headers)
        self._head(asked.status, {**headers, **fault.headers})
        time.sleep(self.server.slowness_seconds)
        self.wfile.write(body if fault.close_after is None else body[: fault.close_after])
        self.wfile.flush()
        time.sleep(fault.silent_seconds)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def _answer(file: Served, asked: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    headers = {"ETag": file.etag, "Last-Modified": file.last_modified}
    is_known = file.etag and asked.get("If-None-Match") == file.etag
    if is_known or (file.last_modified and asked.get("If-Modified-Since") == file.last_modified):
        return 304, headers, b""
    body, status = file.data, 200
    wanted = asked.get("Range", "")
    is_same = asked.get("If-Range") == file.etag or not file.honours_if_range
    if wanted and file.ranges and is_same:
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(file.data):
            return 416, headers, b""
        body, status = file.data[start:], 206
        headers["Content-Range"] = f"bytes {start}-{len(file.data) - 1}/{len(file.data)}"
    if file.says_length:
        headers["Content-Length"] = str(len(body))
    return status, headers, body


@contextmanager
def https_server(ca: trustme.CA, name: str = "127.0.0.1") -> Iterator[HttpsServer]:
    """Run a server with a certificate for `name`."""
    with serving(HttpsServer(ca, name)) as server:
        yield server


def write_ca(ca: trustme.CA, path: Path) -> Path:
    """Write the CA certificate as PEM."""
    ca.cert_pem.write_to_path(str(path))
    return path
