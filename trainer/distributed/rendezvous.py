"""Rendezvous of the processes of a run.

The chief waits until every worker has connected, and reports the missing ones. A worker that restarts during
the rendezvous replaces its earlier connection. A connection that is not part of the run is rejected and
logged; it never ends or delays the run.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue

from trainer.distributed.connection import (
    BYE,
    HANDSHAKE_SECONDS,
    PING,
    WELCOME,
    Connection,
    RejectedError,
    connect,
    listen,
    request_membership,
    verify_member,
)
from trainer.distributed.process_group import PING_SECONDS, SILENCE_SECONDS, ProcessGroup, parse_bye
from trainer.distributed.process_info import ProcessInfo
from trainer.errors import TemporaryError, TrainerError, error_of

_MAX_PENDING = 256
_MAX_REJECTIONS = 20
_REPORT_SECONDS = 15.0
_RETRY_SECONDS = 0.3
_IPV4_IN_IPV6 = "::ffff:"

Log = Callable[[str], None]


def join_process_group(
    process: ProcessInfo,
    fingerprint: Mapping[str, str],
    limit_seconds: float,
    log: Log,
    silence_seconds: float = SILENCE_SECONDS,
) -> ProcessGroup:
    """Return the connected process group of `process` once every process has joined.

    All processes must have the same `fingerprint`, such as digests of the settings by name. `log` is called
    with the names of missing processes and with rejected connections. A process that sends nothing for
    `silence_seconds`, which must exceed PING_SECONDS, has failed. Raises TemporaryError with the names of the
    missing processes after `limit_seconds`, and UsageError in a worker whose fingerprint differs.
    """
    if process.process_count == 1:
        return ProcessGroup(process)
    until = time.monotonic() + limit_seconds
    if process.is_chief:
        server = _RendezvousServer(process, fingerprint, log, silence_seconds)
        return ProcessGroup(process, server.accept_all(until, limit_seconds))
    chief = _connect_to_chief(process, fingerprint, until, limit_seconds, log, silence_seconds)
    return ProcessGroup(process, {0: chief})


class _PendingConnections:
    """Connections whose handshake is in progress, at most `_MAX_PENDING`."""

    def __init__(self) -> None:
        self._hosts: dict[socket.socket, str] = {}
        self._lock = threading.Lock()

    def add(self, connection: socket.socket, host: str) -> None:
        """Add a connection; if there are too many, end the oldest one of the host that has most of them.

        A host that floods the port therefore does not keep out workers on other hosts.
        """
        oldest = None
        with self._lock:
            if len(self._hosts) >= _MAX_PENDING:
                busiest, _ = Counter(self._hosts.values()).most_common(1)[0]
                oldest = next(key for key, value in self._hosts.items() if value == busiest)
                del self._hosts[oldest]
            self._hosts[connection] = host
        if oldest is not None:
            _end(oldest)

    def remove(self, connection: socket.socket) -> None:
        with self._lock:
            self._hosts.pop(connection, None)

    def end_all(self) -> None:
        """End all connections; their threads close them."""
        with self._lock:
            connections = list(self._hosts)
        for connection in connections:
            _end(connection)


class _RendezvousServer:
    """Rendezvous server, run by the chief."""

    def __init__(
        self, process: ProcessInfo, fingerprint: Mapping[str, str], log: Log, silence_seconds: float
    ) -> None:
        self.process, self.fingerprint = process, fingerprint
        self.log, self.silence_seconds = log, silence_seconds
        self.workers: dict[int, Connection] = {}
        self.rejections: Counter[str] = Counter()
        """Number of rejected connections by host and reason."""
        self._pending = _PendingConnections()
        self._admitted: SimpleQueue[tuple[int, Connection]] = SimpleQueue()
        self._rejected: SimpleQueue[str] = SimpleQueue()
        self._reported_at = self._pinged_at = time.monotonic()

    def accept_all(self, until: float, limit_seconds: float) -> dict[int, Connection]:
        """Return the connections to all workers by index. Raises TemporaryError after `until`."""
        try:
            with self._listening() as server:
                server.settimeout(_RETRY_SECONDS)
                while not self._is_complete():
                    if time.monotonic() > until:
                        raise self._timeout_error(limit_seconds)
                    self._accept(server)
                    self._update()
            for worker in self.workers.values():
                with suppress(OSError):  # the next read from this connection detects the failure
                    worker.send(WELCOME)
        except TrainerError as error:
            for worker in self.workers.values():
                with suppress(OSError):
                    worker.send_values(BYE, exit_code=error.exit_code, message=str(error))
            raise
        finally:
            self._pending.end_all()
        return self.workers

    def _is_complete(self) -> bool:
        """Return whether all workers are connected; closed connections are removed first."""
        self.workers = {index: worker for index, worker in self.workers.items() if worker.is_open()}
        return len(self.workers) == self.process.process_count - 1

    def _listening(self) -> socket.socket:
        try:
            return listen(self.process.control, self.process.process_count)
        except OSError as error:
            raise TemporaryError(
                "The control port for the workers of the run cannot be opened.",
                "Check whether another run uses it on this host.",
                received=f"{self.process.control}, {error.strerror}",
            ) from None

    def _timeout_error(self, limit_seconds: float) -> TemporaryError:
        rejections = "; ".join(f"{text} ({count}x)" for text, count in self.rejections.items())
        return TemporaryError(
            f"Not all processes of the run connected within {limit_seconds:g} s; missing: {self._missing()}."
            + (f" Rejected connections: {rejections}." if rejections else ""),
            "Check why they did not start, or raise train.meet_seconds.",
            received=f"{len(self.workers) + 1} of {self.process.process_count} processes",
        )

    def _accept(self, server: socket.socket) -> None:
        try:
            connection, address = server.accept()
        except TimeoutError:
            return
        except OSError:
            time.sleep(_RETRY_SECONDS)  # for example too many open files
            return
        host = str(address[0]).removeprefix(_IPV4_IN_IPV6)
        self._pending.add(connection, host)
        # One thread per connection: a client that connects and sends nothing must not block the others.
        thread = threading.Thread(target=self._shake_hands, args=(connection, host), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # too many threads
            self._pending.remove(connection)
            connection.close()

    def _update(self) -> None:
        """Register new workers, log rejections, and regularly ping the workers and report the missing."""
        while not self._admitted.empty():
            index, worker = self._admitted.get()
            if index in self.workers:  # the process has restarted
                self.workers[index].close()
            self.workers[index] = worker
        while not self._rejected.empty():
            self._count_rejection(self._rejected.get())
        now = time.monotonic()
        if now - self._pinged_at > PING_SECONDS:
            self._pinged_at = now
            for index, worker in list(self.workers.items()):
                try:
                    worker.send(PING)
                except OSError:
                    del self.workers[index]
        if now - self._reported_at > _REPORT_SECONDS:
            self._reported_at = now
            self.log(f"waiting for {self._missing()}")

    def _count_rejection(self, text: str) -> None:
        """Count a rejected connection, and log it if it is the first of its kind."""
        if text not in self.rejections:
            if len(self.rejections) >= _MAX_REJECTIONS:
                text = "other connections"
            if text not in self.rejections:
                self.log(f"rejected a connection: {text}")
        self.rejections[text] += 1

    def _shake_hands(self, connection: socket.socket, host: str) -> None:
        """Read the handshake; reject connections that are not part of this run."""
        try:
            worker = Connection(connection, HANDSHAKE_SECONDS)
            index = verify_member(worker, self.process, self.fingerprint)
            worker.set_timeout(self.silence_seconds)
            self._admitted.put((index, worker))
        except OSError as error:
            reason = error if isinstance(error, RejectedError) else "no valid handshake"
            self._rejected.put(f"{host}, {reason}")
            connection.close()
        finally:
            self._pending.remove(connection)

    def _missing(self) -> str:
        return ", ".join(
            self.process.name(index)
            for index in range(1, self.process.process_count)
            if index not in self.workers
        )


def _end(connection: socket.socket) -> None:
    """End a connection that another thread reads, so that the thread stops waiting and closes it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _connect_to_chief(
    process: ProcessInfo,
    fingerprint: Mapping[str, str],
    until: float,
    limit_seconds: float,
    log: Log,
    silence_seconds: float,
) -> Connection:
    """Return the connection to the chief once the rendezvous is complete."""
    log(f"waiting for the chief, {process.addresses[0]}")
    logged = ""
    while True:
        try:
            chief = Connection(connect(process.control, until), HANDSHAKE_SECONDS)
            try:
                request_membership(chief, process, fingerprint)
                chief.set_timeout(silence_seconds)
                _wait_for_welcome(chief)
            except BaseException:
                chief.close()
                raise
            return chief
        except OSError as error:
            # The chief may have restarted and be waiting again.
            if isinstance(error, RejectedError) and str(error) != logged:
                logged = str(error)
                log(f"{process.control} did not admit this worker: {logged}")
            if time.monotonic() > until:
                raise TemporaryError(
                    f"The chief, {process.addresses[0]}, did not start the run within {limit_seconds:g} s.",
                    "Check why it did not start, or raise train.meet_seconds.",
                    received=f"{process.control}, {error}",
                ) from None
        time.sleep(_RETRY_SECONDS)


def _wait_for_welcome(chief: Connection) -> None:
    """Return when the chief starts the run. Raises the error with which it ends instead, and OSError."""
    while True:
        kind, data = chief.receive()
        if kind == WELCOME:
            return
        if kind == BYE:
            exit_code, message, _ = parse_bye(data)
            raise error_of(exit_code, message)
