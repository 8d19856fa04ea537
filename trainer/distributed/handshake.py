"""Handshake of the process group: mutual proof of membership by HMAC-SHA256 challenge-response.

Worker and chief each send a random nonce. Each then proves that it has the job's secret by a message
authentication code (MAC) of both nonces and its own message, so a recorded handshake can't be replayed and
neither side's proof can be reflected. Without a secret the key is empty: the handshake then protects against
mistakes and stray connections, but not against an attacker.

    worker -> chief   HELLO      nonce of the worker
    chief -> worker   CHALLENGE  nonce of the chief
    worker -> chief   JOIN       MAC and JSON: index, process count, fingerprint
    chief -> worker   ADMIT      MAC and nothing, or
                      REJECT     MAC and JSON: the differences; empty if the worker's MAC is wrong
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from trainer.distributed.connection import (
    ADMIT,
    CHALLENGE,
    HELLO,
    JOIN,
    REJECT,
    Connection,
    parse_values,
)
from trainer.distributed.process_info import GROUP_SECRET, ProcessInfo
from trainer.errors import UsageError
from trainer.sanitize import printable

HANDSHAKE_SECONDS = 10.0
_NONCE_BYTES = 32
_MAC_BYTES = hashlib.sha256().digest_size
_MAX_BYTES = 1 << 16
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
    kind, nonce = connection.receive(_MAX_BYTES, until)
    if kind != CHALLENGE or len(nonce) != _NONCE_BYTES:
        raise RejectedError("the reply is not that of a chief of this version")
    nonces += nonce
    claim = {
        "index": process.process_index,
        "count": process.process_count,
        "fingerprint": dict(fingerprint),
    }
    connection.send(JOIN, _with_mac(process.secret, JOIN, nonces, json.dumps(claim).encode()))
    kind, reply = connection.receive(_MAX_BYTES, until)
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
    kind, message = connection.receive(_MAX_BYTES, until)
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
