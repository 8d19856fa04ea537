"""Process group for one run: broadcast, all-gather and failure detection.

The topology is a star: every worker has one connection, to the chief. All processes send a ping every few
seconds. A process that sends nothing for `SILENCE_SECONDS`, or whose connection closes, has failed, and then
all processes stop.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise

from trainer.distributed.connection import BYE, DATA, Connection, parse_values
from trainer.distributed.process_info import ProcessInfo
from trainer.errors import TemporaryError, TrainerError, error_of

SILENCE_SECONDS = 15.0
PING_SECONDS = 3.0
_POLL_SECONDS = 0.5
_LEAVE_SECONDS = 2.0


class ProcessGroup:
    """The connected processes of a run. In a group of one process every operation is trivial."""

    def __init__(self, process: ProcessInfo, connections: dict[int, Connection] | None = None) -> None:
        """`connections`, by process index: to every worker in the chief, to the chief in a worker."""
        self.process = process
        self._connections = connections or {}
        self._inbox: dict[int, deque[bytes]] = {index: deque() for index in self._connections}
        self._changed = threading.Condition()
        self._error: TrainerError | None = None
        self._failure_actions: list[Callable[[TrainerError], None]] = []
        self._left: set[int] = set()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._listen, args=item, daemon=True, name=f"peer-{item[0]}")
            for item in self._connections.items()
        ]
        for thread in self._threads:
            thread.start()
        if self._connections:
            threading.Thread(target=self._ping, daemon=True, name="ping").start()

    def all_gather(self, data: bytes) -> list[bytes]:
        """All-gather: return the data of every process, in process order; every process must call it.

        Raises the error with which another process ended, and TemporaryError if one has failed.
        """
        if not self._connections:
            return [data]
        if not self.process.is_chief:
            self._send(0, DATA, data)
            return _unpack(self._next(0))
        parts = [data, *(self._next(index) for index in range(1, self.process.process_count))]
        packed = _pack(parts)
        for index in self._connections:
            self._send(index, DATA, packed)
        return parts

    def broadcast(self, data: bytes) -> bytes:
        """Broadcast: return the chief's data; the data of the other processes is ignored."""
        return self.all_gather(data if self.process.is_chief else b"")[0]

    def barrier(self, name: str) -> None:
        """Wait until every process has reached the barrier `name`. Raises the errors of `all_gather`."""
        self.all_gather(name.encode())

    def raise_if_failed(self) -> None:
        """Raise the error with which another process ended, if there is one."""
        if self._error is not None:
            raise self._error

    def on_failure(self, action: Callable[[TrainerError], None]) -> None:
        """Register `action`, which is called when another process fails.

        The thread that detects the failure calls it; if a process has failed already, it is called
        immediately.
        """
        with self._changed:
            self._failure_actions.append(action)
            error = self._error
        if error is not None:
            action(error)

    def shutdown(self, exit_code: int = 0, message: str = "") -> None:
        """Shut down; a nonzero `exit_code` makes the other processes stop with the same error."""
        if self._closed.is_set():
            return
        self._closed.set()
        values = {"exit_code": exit_code, "message": message, "process": self.process.process_index}
        for connection in self._connections.values():
            with suppress(OSError):
                connection.send_values(BYE, **values)
                connection.end()
        for thread in self._threads:
            thread.join(_LEAVE_SECONDS)
        for connection in self._connections.values():
            connection.close()

    def _next(self, index: int) -> bytes:
        with self._changed:
            while not self._inbox[index]:
                self.raise_if_failed()
                if index in self._left:
                    raise TemporaryError(
                        f"{self.process.name(index)} left the run before the end.",
                        "Check its log, then restart all processes to resume from the last checkpoint.",
                    )
                self._changed.wait(_POLL_SECONDS)
            return self._inbox[index].popleft()

    def _send(self, index: int, kind: bytes, data: bytes) -> None:
        self.raise_if_failed()
        try:
            self._connections[index].send(kind, data)
        except OSError as error:
            self._lose(index, error)
            self.raise_if_failed()

    def _listen(self, index: int, connection: Connection) -> None:
        try:
            while True:
                kind, data = connection.receive()
                if kind == BYE:
                    self._receive_bye(index, data)
                    return
                if kind == DATA:
                    with self._changed:
                        self._inbox[index].append(data)
                        self._changed.notify_all()
        except OSError as error:
            self._lose(index, error)

    def _ping(self) -> None:
        while not self._closed.wait(PING_SECONDS):
            for index, connection in self._connections.items():
                try:
                    # A long message in progress must not delay the pings to the other processes.
                    connection.ping()
                except OSError as error:
                    self._lose(index, error)

    def _receive_bye(self, index: int, data: bytes) -> None:
        exit_code, message, origin = parse_bye(data)
        if exit_code == 0:
            with self._changed:
                self._left.add(index)
                self._changed.notify_all()
            return
        if origin is not None and 0 <= origin < self.process.process_count:
            self._fail(error_of(exit_code, f"{self.process.name(origin)}: {message}"), message, origin)
        else:
            self._fail(error_of(exit_code, message), message)

    def _lose(self, index: int, reason: OSError) -> None:
        if index not in self._left:
            error = TemporaryError(
                f"Lost connection to {self.process.name(index)}; stopping all workers.",
                "Restart to resume from the last checkpoint.",
                received=reason,
            )
            self._fail(error, str(error))

    def _fail(self, error: TrainerError, message: str, origin: int | None = None) -> None:
        """Fail with `error`; the chief forwards its `message`, and the process at its origin, to all."""
        with self._changed:
            if self._error is not None or self._closed.is_set():
                return
            self._error = error
            self._changed.notify_all()
            actions = list(self._failure_actions)
        if self.process.is_chief:
            values = {"exit_code": error.exit_code, "message": message, "process": origin}
            for connection in self._connections.values():
                with suppress(OSError):
                    connection.send_values(BYE, **values)
        for action in actions:
            action(error)


def parse_bye(data: bytes) -> tuple[int, str, int | None]:
    """Return exit code, message and origin of a BYE message; the origin is None for a lost connection."""
    values = parse_values(data)
    exit_code, origin = values.get("exit_code"), values.get("process")
    return (
        exit_code if type(exit_code) is int else 1,
        str(values.get("message", "")),
        origin if type(origin) is int else None,
    )


def _pack(parts: Sequence[bytes]) -> bytes:
    return b"".join([struct.pack(f">{1 + len(parts)}Q", len(parts), *map(len, parts)), *parts])


def _unpack(data: bytes) -> list[bytes]:
    (count,) = struct.unpack_from(">Q", data)
    ends = accumulate(struct.unpack_from(f">{count}Q", data, 8), initial=8 * (count + 1))
    return [data[start:end] for start, end in pairwise(ends)]
