"""Process group for one run: broadcast, all-gather and failure detection.

The topology is a star: every other process has one connection, to the chief. All processes send a ping every
few seconds. A process that sends nothing for `SILENCE_SECONDS`, or whose connection closes, has failed, and
then all processes stop.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise

from trainer.distributed.connection import BYE, DATA, Connection, values_of
from trainer.distributed.process_info import ProcessInfo
from trainer.errors import TemporaryError, TrainerError, error_of

SILENCE_SECONDS = 15.0
PING_SECONDS = 3.0
_LOOK_SECONDS = 0.5
_LEAVE_SECONDS = 2.0


class ProcessGroup:
    """The connected processes of a run. In a group of one process every operation is trivial."""

    def __init__(self, place: ProcessInfo, wires: dict[int, Connection] | None = None) -> None:
        """`wires` has one connection to every other process in the chief, and one to the chief elsewhere."""
        self.process = place
        self._wires = wires or {}
        self._inbox: dict[int, deque[bytes]] = {index: deque() for index in self._wires}
        self._changed = threading.Condition()
        self._error: TrainerError | None = None
        self._on_end: list[Callable[[TrainerError], None]] = []
        self._left: set[int] = set()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._listen, args=each, daemon=True, name=f"peer-{each[0]}")
            for each in self._wires.items()
        ]
        for thread in self._threads:
            thread.start()
        if self._wires:
            threading.Thread(target=self._ping, daemon=True, name="ping").start()

    def all_gather(self, data: bytes) -> list[bytes]:
        """All-gather: return the data of every process, in process order; every process must call it.

        Raises the error with which another process ended, and TemporaryError if one has failed.
        """
        if not self._wires:
            return [data]
        if not self.process.is_chief:
            self._send(0, DATA, data)
            return _unpacked(self._next(0))
        said = [data, *(self._next(index) for index in range(1, self.process.process_count))]
        packed = _packed(said)
        for index in self._wires:
            self._send(index, DATA, packed)
        return said

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
            self._on_end.append(action)
            error = self._error
        if error is not None:
            action(error)

    def shutdown(self, exit_code: int = 0, message: str = "") -> None:
        """Shut down; a nonzero `exit_code` makes the other processes stop with the same error."""
        if self._closed.is_set():
            return
        self._closed.set()
        for wire in self._wires.values():
            with suppress(OSError):
                wire.send_values(BYE, exit_code=exit_code, message=message)
                wire.end()
        for thread in self._threads:
            thread.join(_LEAVE_SECONDS)
        for wire in self._wires.values():
            wire.close()

    def _next(self, index: int) -> bytes:
        with self._changed:
            while not self._inbox[index]:
                self.raise_if_failed()
                if index in self._left:
                    raise TemporaryError(
                        f"{self.process.name(index)} has left before the end.", received="nothing"
                    )
                self._changed.wait(_LOOK_SECONDS)
            return self._inbox[index].popleft()

    def _send(self, index: int, kind: bytes, data: bytes) -> None:
        self.raise_if_failed()
        try:
            self._wires[index].send(kind, data)
        except OSError as error:
            self._lose(index, error)
            self.raise_if_failed()

    def _listen(self, index: int, wire: Connection) -> None:
        try:
            while True:
                kind, data = wire.receive()
                if kind == BYE:
                    self._hear_end(index, data)
                    return
                if kind == DATA:
                    with self._changed:
                        self._inbox[index].append(data)
                        self._changed.notify_all()
        except OSError as error:
            self._lose(index, error)

    def _ping(self) -> None:
        while not self._closed.wait(PING_SECONDS):
            for index, wire in self._wires.items():
                try:
                    # A long message in progress must not delay the pings to the other processes.
                    wire.ping()
                except OSError as error:
                    self._lose(index, error)

    def _hear_end(self, index: int, data: bytes) -> None:
        values = values_of(data)
        exit_code, message = int(values.get("exit_code", 1)), str(values.get("message", ""))
        if exit_code == 0:
            with self._changed:
                self._left.add(index)
                self._changed.notify_all()
            return
        # A message that the chief forwards already names the failed worker.
        said = (
            message
            if index == 0 and message.startswith("worker ")
            else f"{self.process.name(index)}: {message}"
        )
        self._end(error_of(exit_code, said))

    def _lose(self, index: int, error: OSError) -> None:
        if index not in self._left:
            self._end(
                TemporaryError(
                    f"{self.process.name(index)} is gone, and so all end; started again they go on from the "
                    f"last checkpoint.",
                    received=error,
                )
            )

    def _end(self, error: TrainerError) -> None:
        with self._changed:
            if self._error is not None or self._closed.is_set():
                return
            self._error = error
            self._changed.notify_all()
            actions = list(self._on_end)
        if self.process.is_chief:
            for wire in self._wires.values():
                with suppress(OSError):
                    wire.send_values(BYE, exit_code=error.exit_code, message=str(error))
        for action in actions:
            action(error)


def _packed(parts: Sequence[bytes]) -> bytes:
    return b"".join([struct.pack(f">{1 + len(parts)}Q", len(parts), *map(len, parts)), *parts])


def _unpacked(data: bytes) -> list[bytes]:
    (count,) = struct.unpack_from(">Q", data)
    ends = accumulate(struct.unpack_from(f">{count}Q", data, 8), initial=8 * (count + 1))
    return [data[start:end] for start, end in pairwise(ends)]
