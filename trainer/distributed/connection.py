"""Message protocol and handshake between two processes over one TCP connection.

A message is its kind (1 byte), the length of its data (8 bytes, big-endian) and the data. Received data is
never executed or unpickled.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from typing import Any

from trainer.distributed.process_info import GROUP_SECRET, ProcessInfo
from trainer.errors import UsageError
from trainer.sanitize import printable

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


HANDSHAKE_SECONDS = 10.0
_NONCE_BYTES = 32
_MAC_BYTES = hashlib.sha256().digest_size
_MAX_HANDSHAKE_BYTES = 1 << 16
_MAX_DIFFERENCES = 5
_MAX_CHARACTERS = 60
_PROTOCOL = b"trainer process group 1"


class RejectedError(OSError):
    """The handshake failed; the text is the reason for the log."""


def request_membership(connection: Connection, process: ProcessInfo, fingerprint: Mapping[str, str]) -> None:
    """Join the group of the chief at the other end of `connection`.

    Raises UsageError if the chief proves its membership and rejects this process, and OSError if the
    connection fails or the chief does not prove its membership.
    """
    until = time.monotonic() + HANDSHAKE_SECONDS
    nonces = secrets.token_bytes(_NONCE_BYTES)
    connection.send(HELLO, nonces)
    kind, nonce = connection.receive(_MAX_HANDSHAKE_BYTES, until)
    if kind != CHALLENGE or len(nonce) != _NONCE_BYTES:
        raise RejectedError("the reply is not that of a chief of this version")
    nonces += nonce
    claim = {
        "index": process.process_index,
        "count": process.process_count,
        "fingerprint": dict(fingerprint),
    }
    connection.send(JOIN, _with_mac(process.secret, JOIN, nonces, json.dumps(claim).encode()))
    kind, reply = connection.receive(_MAX_HANDSHAKE_BYTES, until)
    answer = _verified(process.secret, kind, nonces, reply)
    if answer is None:
        raise RejectedError(f"the chief has another {GROUP_SECRET}")
    if kind == REJECT:
        raise UsageError(
            f"This process is not part of the run of the chief, {process.addresses[0]}: it differs in "
            f"{_listed(parse_values(answer).get('differences'))}.",
            "Start all processes with the same command and the same version of trainer.",
            received=process.name(process.process_index),
        )
    if kind != ADMIT:
        raise RejectedError("the reply is not that of a chief of this version")


def verify_member(connection: Connection, process: ProcessInfo, fingerprint: Mapping[str, str]) -> int:
    """Return the index of the worker at the other end of `connection` and admit it.

    Raises RejectedError with the reason if it is not a member of this run, and OSError if the connection
    fails.
    """
    until = time.monotonic() + HANDSHAKE_SECONDS
    kind, nonces = connection.receive(_NONCE_BYTES, until)
    if kind != HELLO or len(nonces) != _NONCE_BYTES:
        raise OSError("The message is not the start of a handshake.")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    connection.send(CHALLENGE, nonce)
    nonces += nonce
    kind, message = connection.receive(_MAX_HANDSHAKE_BYTES, until)
    data = _verified(process.secret, kind, nonces, message)
    if kind != JOIN or data is None:
        # Without a MAC: a stranger must not get one that is made with the secret.
        connection.send(REJECT)
        raise RejectedError(f"another {GROUP_SECRET} or none")
    claim = parse_values(data)
    index, differences = claim.get("index"), _differences(claim, process, fingerprint)
    if differences or type(index) is not int:
        answer = json.dumps({"differences": differences}).encode()
        connection.send(REJECT, _with_mac(process.secret, REJECT, nonces, answer))
        name = f"worker {index}"[:16] if type(index) is int else "a worker"
        raise RejectedError(f"{name} differs in {_listed(differences)}")
    connection.send(ADMIT, _with_mac(process.secret, ADMIT, nonces, b""))
    return index


def _differences(claim: Mapping[str, Any], process: ProcessInfo, fingerprint: Mapping[str, str]) -> list[str]:
    """Return the names of the values in which the claim of a worker does not fit this run."""
    index, other = claim.get("index"), claim.get("fingerprint")
    if claim.get("count") != process.process_count:
        return ["number of processes"]
    if type(index) is not int or not 0 < index < process.process_count:
        return ["process index"]
    if not isinstance(other, dict):
        return ["fingerprint"]
    names = {*fingerprint, *other}
    return sorted(str(name) for name in names if fingerprint.get(name) != other.get(name))


def _listed(names: object) -> str:
    """Return names that another process sent as text of limited length, without control characters."""
    texts = [printable(str(name))[:_MAX_CHARACTERS] for name in names] if isinstance(names, list) else []
    more = [f"{len(texts) - _MAX_DIFFERENCES} more"] if len(texts) > _MAX_DIFFERENCES else []
    return ", ".join([*texts[:_MAX_DIFFERENCES], *more]) or "handshake"


def _with_mac(secret: bytes, kind: bytes, nonces: bytes, data: bytes) -> bytes:
    return _mac(secret, kind, nonces, data) + data


def _verified(secret: bytes, kind: bytes, nonces: bytes, message: bytes) -> bytes | None:
    """Return the data of a message whose MAC is valid, or None."""
    mac, data = message[:_MAC_BYTES], message[_MAC_BYTES:]
    return data if hmac.compare_digest(mac, _mac(secret, kind, nonces, data)) else None


def _mac(secret: bytes, kind: bytes, nonces: bytes, data: bytes) -> bytes:
    # All parts before the data have a fixed length, so the concatenation is unambiguous. The kind separates
    # the proofs of worker and chief.
    return hmac.digest(secret, _PROTOCOL + kind + nonces + data, "sha256")
