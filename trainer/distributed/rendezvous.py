"""Rendezvous of the processes of a run.

The chief waits until every process has connected, and names the missing ones. A process that restarts during
the rendezvous replaces its earlier connection.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from trainer.distributed.connection import BYE, HELLO, PING, WELCOME, Connection, connect, listen, values_of
from trainer.distributed.process_group import PING_SECONDS, SILENCE_SECONDS, ProcessGroup
from trainer.distributed.process_info import ProcessInfo
from trainer.errors import TemporaryError, TrainerError, UsageError, error_of

_HELLO_SECONDS = 5.0
_HELLO_BYTES = 4096
_MOST_AT_THE_DOOR = 256
_NEWS_SECONDS = 15.0
_AGAIN_SECONDS = 0.3

Say = Callable[[str], None]


def join_process_group(
    place: ProcessInfo, common: str, limit_seconds: float, say: Say, silence_seconds: float = SILENCE_SECONDS
) -> ProcessGroup:
    """Return the connected process group of `place` once every process has joined.

    All processes must have the same `common`, a digest of the spec. `say` is called with the names of the
    missing processes. A process that sends nothing for `silence_seconds`, which must exceed PING_SECONDS, has
    failed. Raises TemporaryError with the names of the missing processes after `limit_seconds`, and
    UsageError if a process has another spec.
    """
    if place.process_count == 1:
        return ProcessGroup(place)
    until = time.monotonic() + limit_seconds
    if place.is_chief:
        return ProcessGroup(
            place, _RendezvousServer(place, common, say, silence_seconds).accept_all(until, limit_seconds)
        )
    return ProcessGroup(place, {0: _join(place, common, until, limit_seconds, say, silence_seconds)})


class _RendezvousServer:
    """Rendezvous server, run by the chief."""

    def __init__(self, place: ProcessInfo, common: str, say: Say, silence_seconds: float) -> None:
        self.place, self.common, self.say, self.silence_seconds = place, common, say, silence_seconds
        self.wires: dict[int, Connection] = {}
        self.heard: SimpleQueue[tuple[int, Connection, dict[str, Any]]] = SimpleQueue()
        self.door = threading.BoundedSemaphore(_MOST_AT_THE_DOOR)
        self.spoke_at = self.pinged_at = time.monotonic()

    def accept_all(self, until: float, limit_seconds: float) -> dict[int, Connection]:
        try:
            with self._listening() as server:
                server.settimeout(_AGAIN_SECONDS)
                while not self._is_complete():
                    if time.monotonic() > until:
                        raise TemporaryError(
                            f"Not all processes of the run came within {limit_seconds:g} s: missing are "
                            f"{self._missing()}. See why they did not start, or raise train.meet_seconds.",
                            received=f"{len(self.wires) + 1} of {self.place.process_count}",
                        )
                    self._look(server)
            for wire in self.wires.values():
                with suppress(OSError):  # the next read from this connection detects the failure
                    wire.send(WELCOME)
        except TrainerError as error:
            for wire in self.wires.values():
                with suppress(OSError):
                    wire.send_values(BYE, exit_code=error.exit_code, message=str(error))
            raise
        return self.wires

    def _is_complete(self) -> bool:
        """Return whether all processes are connected; closed connections are removed first."""
        self.wires = {index: wire for index, wire in self.wires.items() if wire.is_open()}
        return len(self.wires) == self.place.process_count - 1

    def _listening(self) -> socket.socket:
        try:
            return listen(self.place.control, self.place.process_count)
        except OSError as error:
            raise TemporaryError(
                "The port for the other processes of the run can't be opened; is another run at work here?",
                received=f"{self.place.control}, {error.strerror}",
            ) from None

    def _look(self, server: socket.socket) -> None:
        with suppress(TimeoutError):
            connection, _ = server.accept()
            # One thread per connection: a client that connects and sends nothing must not block the others.
            threading.Thread(target=self._hear, args=(connection,), daemon=True, name="hello").start()
        while not self.heard.empty():
            self._admit(*self.heard.get())
        now = time.monotonic()
        if now - self.pinged_at > PING_SECONDS:
            self.pinged_at = now
            for index, wire in list(self.wires.items()):
                try:
                    wire.send(PING)
                except OSError:
                    del self.wires[index]
        if now - self.spoke_at > _NEWS_SECONDS:
            self.spoke_at = now
            self.say(f"waiting for {self._missing()}")

    def _hear(self, connection: socket.socket) -> None:
        """Read the handshake; reject connections that are not part of this run."""
        if not self.door.acquire(blocking=False):
            connection.close()
            return
        try:
            wire = Connection(connection, _HELLO_SECONDS)
            kind, data = wire.receive(_HELLO_BYTES, time.monotonic() + _HELLO_SECONDS)
            values = values_of(data) if kind == HELLO else {}
            index, count = values.get("index"), values.get("count")
            if (
                type(index) is not int
                or not 0 < index < self.place.process_count
                or count != self.place.process_count
            ):
                raise OSError("a stranger")
            wire.silence(self.silence_seconds)
            self.heard.put((index, wire, values))
        except OSError:
            connection.close()
        finally:
            self.door.release()

    def _admit(self, index: int, wire: Connection, said: dict[str, Any]) -> None:
        """Register a process, replacing its earlier connection. Raises UsageError for another spec."""
        self.wires[index] = wire
        if said.get("common") != self.common:
            raise UsageError(
                "The processes of the run have different specs or versions of this program; start all with "
                "the same command.",
                received=f"another one from {self.place.name(index)}",
            )

    def _missing(self) -> str:
        names = [
            self.place.name(index) for index in range(1, self.place.process_count) if index not in self.wires
        ]
        return ", ".join(names)


def _join(
    place: ProcessInfo, common: str, until: float, limit_seconds: float, say: Say, silence_seconds: float
) -> Connection:
    """Return the connection to the chief once the rendezvous is complete."""
    say(f"waiting for the chief, {place.addresses[0]}")
    while True:
        try:
            wire = Connection(connect(place.control, until), silence_seconds)
            wire.send_values(HELLO, index=place.process_index, count=place.process_count, common=common)
            while True:
                kind, data = wire.receive()
                if kind == WELCOME:
                    return wire
                if kind == BYE:
                    values = values_of(data)
                    raise error_of(int(values.get("exit_code", 1)), str(values.get("message", "")))
        except OSError as error:
            # The chief may have restarted and be waiting again.
            if time.monotonic() > until:
                raise TemporaryError(
                    f"The chief, {place.addresses[0]}, did not begin the run within {limit_seconds:g} s. See "
                    f"why it did not start, or raise train.meet_seconds.",
                    received=f"{place.control}, {error}",
                ) from None
        time.sleep(_AGAIN_SECONDS)
