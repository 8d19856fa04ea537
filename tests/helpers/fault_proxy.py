"""Proxy between the Cloud Storage client and its server that injects network faults.

A function chooses the fault of each request. The bodies of requests and responses share an optional bandwidth
limit.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from helpers.serving import serving

FAULTS = ("unavailable", "reset", "stall", "lost reply", "flipped request", "flipped reply", "cut reply")
_REFUSALS = {
    "unauthorized": (401, "Invalid Credentials"),
    "forbidden": (403, "me does not have storage.objects access to the bucket."),
    "precondition": (412, "a rule of the bucket"),
    "checksum": (412, "crc32c validation failed. Expected = AAAAAA== vs Actual = BBBBBB==."),
}
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}

Choose = Callable[[int, str, str], "str | None"]
"""Maps the number of a request, its method and its path to a fault, or None."""


class FaultProxy(ThreadingHTTPServer):
    """Proxy to `upstream`; `done` lists the faults that were injected."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, upstream: str, choose: Choose, stall_seconds: float = 3.0, bytes_per_second: float | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.choose, self.stall_seconds = choose, stall_seconds
        self.done: list[str] = []
        self._requests = 0
        self._lock = threading.Lock()
        self._rate, self._free_at = bytes_per_second, 0.0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of disconnected clients."""

    def next_fault(self, method: str, path: str) -> str | None:
        with self._lock:
            self._requests += 1
            return self.choose(self._requests, method, path)

    def note(self, fault: str) -> None:
        """Record an injected fault."""
        with self._lock:
            self.done.append(fault)

    def pass_bytes(self, count: int) -> None:
        """Sleep as long as `count` bytes take on the bandwidth shared by all connections."""
        if self._rate is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._rate
            wait = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait))


class _Handler(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def log_message(self, *arguments: object) -> None:
        pass

    def _forward(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.pass_bytes(len(body))
        fault = self.server.next_fault(method, self.path)
        if fault == "flipped request" and not body:
            fault = None  # there is no body to change
        if fault and fault != "flipped reply":
            self.server.note(fault)
        if fault == "unavailable":
            self._answer(503, [("Retry-After", "0")], b"try again")
        elif fault in _REFUSALS:
            code, message = _REFUSALS[fault]
            said = json.dumps({"error": {"code": code, "message": message}}).encode()
            self._answer(code, [("Content-Type", "application/json")], said)
        elif fault == "reset":
            self._reset()
        elif fault == "stall":
            time.sleep(self.server.stall_seconds)
            self._reset()
        else:
            self._pass_on(method, _flipped(body) if fault == "flipped request" else body, fault)

    def _pass_on(self, method: str, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.request(method, self.path, body, dict(self.headers.items()))
            reply = upstream.getresponse()
            data = reply.read()
        finally:
            upstream.close()
        self.server.pass_bytes(len(data))
        if fault == "lost reply":
            self._reset()
            return
        if fault == "flipped reply" and data:
            self.server.note(fault)
            data = _flipped(data)
        headers = [(name, value) for name, value in reply.getheaders() if name.lower() not in _HOP]
        self._answer(reply.status, headers, data, cut=fault == "cut reply")

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._reset()

    def _reset(self) -> None:
        # With a linger time of 0, close sends RST immediately.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()

    do_GET = partialmethod(_forward, "GET")  # noqa: N815
    do_POST = partialmethod(_forward, "POST")  # noqa: N815
    do_PUT = partialmethod(_forward, "PUT")  # noqa: N815
    do_DELETE = partialmethod(_forward, "DELETE")  # noqa: N815


def _flipped(data: bytes) -> bytes:
    """Flip one bit in the second half of `data`; multipart bodies begin with headers."""
    changed = bytearray(data)
    changed[len(data) * 3 // 4] ^= 1
    return bytes(changed)


def at_random(seed: int, probability: float, faults: tuple[str, ...] = FAULTS) -> Choose:
    """Return a choice of one of `faults` per request with `probability`, reproducible by `seed`."""
    rng = random.Random(seed)
    return lambda number, method, path: rng.choice(faults) if rng.random() < probability else None


def only(fault: str, number: int) -> Choose:
    """Return a choice of `fault` for request `number` only, counted from 1."""
    return lambda count, method, path: fault if count == number else None


@contextmanager
def fault_proxy(
    upstream: str, choose: Choose, stall_seconds: float = 3.0, bytes_per_second: float | None = None
) -> Iterator[FaultProxy]:
    """Run the proxy within the block."""
    with serving(FaultProxy(upstream, choose, stall_seconds, bytes_per_second)) as proxy:
        yield proxy
