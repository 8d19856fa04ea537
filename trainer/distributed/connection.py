"""Message protocol between two processes over one TCP connection.

A message is its kind (1 byte), the length of its data (8 bytes, big-endian) and the data. Received data is
never executed or unpickled.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from typing import Any

_HEAD = struct.Struct(">cQ")
_MAX_BYTES = 1 << 36
_CHUNK_BYTES = 1 << 20
_BACKLOG = 128
"""Room for connections that are not part of the run."""

HELLO, CHALLENGE, JOIN, ADMIT, REJECT = b"h", b"c", b"j", b"a", b"r"
WELCOME, DATA, PING, BYE = b"w", b"d", b"p", b"b"


class Connection:
    """One connection. `send` may be called by any thread, `receive` by one."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        """`seconds` is the timeout: the other side has failed if it sends nothing for that long."""
        connection.settimeout(seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, kind: bytes, data: bytes = b"") -> None:
        """Send one message. Raises OSError."""
        with self._sending:
            self._connection.sendall(_HEAD.pack(kind, len(data)))
            # In chunks: the timeout then applies to each chunk instead of the whole message.
            for start in range(0, len(data), _CHUNK_BYTES):
                self._connection.sendall(memoryview(data)[start : start + _CHUNK_BYTES])

    def ping(self) -> None:
        """Send a ping, unless another message is being sent. Raises OSError."""
        if self._sending.acquire(blocking=False):
            try:
                self._connection.sendall(_HEAD.pack(PING, 0))
            finally:
                self._sending.release()

    def send_values(self, kind: bytes, **values: Any) -> None:
        """Send a message of JSON values. Raises OSError."""
        self.send(kind, json.dumps(values).encode())

    def receive(self, max_bytes: int = _MAX_BYTES, until: float | None = None) -> tuple[bytes, bytes]:
        """Return the kind and the data of the next message.

        Raises OSError, also if the other side has closed the connection, if the announced length exceeds
        `max_bytes`, and if the message is not complete at the monotonic time `until`.
        """
        kind, size = _HEAD.unpack(self._read(_HEAD.size, until))
        if size > max_bytes:
            raise OSError(f"The message is too long: {size} bytes")
        return kind, self._read(size, until)

    def set_timeout(self, seconds: float) -> None:
        """Set the timeout of the connection in seconds."""
        self._connection.settimeout(seconds)

    def is_open(self) -> bool:
        """Return False if the connection is known to be closed; never blocks."""
        try:
            poll = select.poll()  # unlike select(), it takes file descriptors above 1023
            poll.register(self._connection, select.POLLIN)
            return not poll.poll(0) or bool(self._connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def end(self) -> None:
        """Close the sending direction of the connection. Raises OSError."""
        self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _read(self, size: int, until: float | None) -> bytes:
        data = bytearray()
        while len(data) < size:
            if until is not None:
                self._connection.settimeout(max(0.001, until - time.monotonic()))
            part = self._connection.recv(min(_CHUNK_BYTES, size - len(data)))
            if not part:
                raise ConnectionError("the connection was closed")
            data += part
        return bytes(data)


def parse_values(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a message, or an empty one if it is invalid."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def connect(address: str, until: float) -> socket.socket:
    """Return a connection to HOST:PORT, retrying until the monotonic time `until`. Raises OSError."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=5.0)
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


def is_free(address: str) -> bool:
    """Return whether the port of HOST:PORT can be opened on this host now."""
    try:
        listen(address, 0).close()
        return True
    except OSError:
        return False


def listen(address: str, count: int) -> socket.socket:
    """Return a socket that listens on the port of HOST:PORT, on all interfaces. Raises OSError."""
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    return socket.create_server(
        ("", port), family=family, backlog=count + _BACKLOG, dualstack_ipv6=socket.has_dualstack_ipv6()
    )
