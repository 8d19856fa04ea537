"""Membership of the process group: strangers, wrong secrets, replays and floods never end or delay a run."""

from __future__ import annotations

import fcntl
import json
import resource
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest
from helpers.free_ports import addresses
from helpers.group_processes import results_of, start

from trainer.distributed import ProcessInfo
from trainer.distributed.connection import (
    ADMIT,
    CHALLENGE,
    HELLO,
    JOIN,
    REJECT,
    Connection,
    RejectedError,
    _with_mac,
    request_membership,
    verify_member,
)
from trainer.distributed.rendezvous import _MAX_PENDING, _PendingConnections, _RendezvousServer
from trainer.errors import UsageError

SECRET = "an0ther-l0ng-and-random-t0ken"
CHIEF, WORKER = "log(group.all_gather(b'a'))", "group.all_gather(b'b')"
FINGERPRINT = {"train.epochs": "3", "seed": "0"}


def port_of(host: str) -> tuple[str, int]:
    return "127.0.0.1", int(host.rpartition(":")[2])


def connect(address: tuple[str, int]) -> socket.socket:
    """Connect to a process that may not listen yet, with retries for 20 s."""
    until = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(address, timeout=5)
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a connection within this process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return socket.create_connection(server.getsockname()), server.accept()[0]


def request(address: tuple[str, int], process: ProcessInfo, fingerprint: dict[str, str]) -> None:
    """Do the handshake of `process`."""
    with closing(connect(address)) as connection:
        request_membership(Connection(connection, 5.0), process, fingerprint)


def require_completed(chief: subprocess.Popen[str], hosts: list[str], secret: str = "") -> str:
    """Start the missing worker, require that the run completes, and return the output of the chief."""
    results = results_of([chief, start(1, hosts, WORKER, secret=secret)])
    assert [code for code, _ in results] == [0, 0], results
    assert results[0][1].endswith("[b'a', b'b']\n")
    return results[0][1]


@pytest.mark.parametrize("secret", ["", SECRET], ids=["no secret", "secret"])
def test_garbage_is_rejected_and_the_run_completes(secret: str) -> None:
    hosts = addresses(2)
    chief = start(0, hosts, CHIEF, secret=secret)
    hello = HELLO + struct.pack(">Q", 32) + bytes(32)
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'h\0\0\0\0\0\0\0\x20{"index": 1, "count": 2}',  # of an earlier version
        HELLO + b"\xff" * 8,
        JOIN + struct.pack(">Q", 1 << 40),
        b"",
        hello + JOIN + struct.pack(">Q", 40) + bytes(40),
        hello + JOIN + struct.pack(">Q", 1 << 20) + bytes(1 << 20),
    ):
        with closing(connect(port_of(hosts[0]))) as stranger, suppress(OSError):
            stranger.sendall(data)
    text = require_completed(chief, hosts, secret)
    assert "rejected a connection: 127.0.0.1, no valid handshake" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "claim",
    [
        b"", b"7", b"[" * 60_000, b'{"index": Infinity, "count": 2}', b'{"index": true, "count": 2}',
        b'{"index": 1' + b"0" * 4000 + b', "count": 2}', b'{"index": 1, "count": 2, "fingerprint": [1]}',
        b'{"index": ' + b"[" * 900 + b"]" * 900 + b', "count": 2}', b'{"index": 1, "count": 2}',
        b'{"index": 1, "count": 2, "fingerprint": {"a\\u001b[2J": "\\ud800"}}',
    ],
    ids=range(10),
)  # fmt: skip
def test_invalid_claim_with_a_valid_mac_is_rejected(claim: bytes) -> None:
    near, far = tcp_pair()
    with closing(near), closing(far):
        stranger = Connection(near, 5.0)
        reasons: list[str] = []

        def verify() -> None:
            with pytest.raises(RejectedError) as raised:
                verify_member(Connection(far, 5.0), ProcessInfo(("a:1", "b:1"), 0, "a:2"), FINGERPRINT)
            reasons.append(str(raised.value))

        thread = threading.Thread(target=verify)
        thread.start()
        nonce = bytes(32)
        stranger.send(HELLO, nonce)
        _, other = stranger.receive()
        stranger.send(JOIN, _with_mac(b"", JOIN, nonce + other, claim))
        assert stranger.receive()[0] == REJECT
        thread.join(10)
    assert len(reasons) == 1
    assert "differs in" in reasons[0]
    assert reasons[0].isprintable()
    assert len(reasons[0]) < 400


@pytest.mark.parametrize("stranger_secret", ["", "a guess"])
def test_stranger_without_the_secret_is_rejected_and_the_run_completes(stranger_secret: str) -> None:
    hosts = addresses(2)
    chief = start(0, hosts, CHIEF, secret=SECRET)
    for fingerprint in (FINGERPRINT, FINGERPRINT | {"seed": "1"}):
        stranger = ProcessInfo(tuple(hosts), 1, hosts[0], stranger_secret.encode())
        with pytest.raises(OSError, match="the chief has another TRAINER_GROUP_SECRET"):
            request(port_of(hosts[0]), stranger, fingerprint)
    text = require_completed(chief, hosts, SECRET)
    assert "rejected a connection: 127.0.0.1, another TRAINER_GROUP_SECRET or none" in text
    assert SECRET not in text


def test_worker_with_another_secret_is_told_why_and_neither_side_prints_a_secret() -> None:
    hosts = addresses(2)
    results = results_of(
        [start(0, hosts, "", 3.0, secret=SECRET), start(1, hosts, "", 1.5, secret="wr0ng-secret")]
    )
    assert [code for code, _ in results] == [75, 75]
    assert "Rejected connections: 127.0.0.1, another TRAINER_GROUP_SECRET or none (" in results[0][1]
    assert "the chief has another TRAINER_GROUP_SECRET" in results[1][1]
    for _, text in results:
        assert SECRET not in text
        assert "wr0ng-secret" not in text


@pytest.mark.parametrize("secret", ["", SECRET], ids=["no secret", "secret"])
def test_worker_of_another_spec_ends_with_2_and_the_run_completes_without_it(secret: str) -> None:
    hosts = addresses(2)
    chief = start(0, hosts, CHIEF, secret=secret)
    ((code, text),) = results_of([start(1, hosts, WORKER, epochs="4", secret=secret)])
    assert code == 2
    assert f"not part of the run of the chief, {hosts[0]}: it differs in train.epochs." in text
    chief_text = require_completed(chief, hosts, secret)
    assert "rejected a connection: 127.0.0.1, worker 1 differs in train.epochs" in chief_text


def test_chief_that_waits_in_vain_reports_in_what_the_rejected_worker_differs() -> None:
    hosts = addresses(2)
    chief, worker = results_of([start(0, hosts, "", 4.0), start(1, hosts, "", 10.0, epochs="4")])
    assert (chief[0], worker[0]) == (75, 2)
    assert f"missing: worker 1 ({hosts[1]})" in chief[1]
    assert "Rejected connections: 127.0.0.1, worker 1 differs in train.epochs (1x)." in chief[1]


class TwoProcesses(ProcessInfo):
    """A process that claims to be one of two, whatever its index."""

    process_count = 2  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("process", "name"),
    [
        (ProcessInfo(("a:1", "b:1"), 0), "process index"),
        (TwoProcesses(("a:1", "b:1", "c:1"), 2), "process index"),
        (ProcessInfo(("a:1", "b:1", "c:1"), 1), "number of processes"),
    ],
)
def test_wrong_index_or_count_is_rejected_and_the_run_completes(process: ProcessInfo, name: str) -> None:
    hosts = addresses(2)
    chief = start(0, hosts, CHIEF)
    with pytest.raises(UsageError, match=f"differs in {name}"):
        request(port_of(hosts[0]), process, FINGERPRINT)
    assert f"worker {process.process_index} differs in {name}" in require_completed(chief, hosts)


def test_rejected_connection_does_not_replace_the_worker_of_its_index() -> None:
    hosts = addresses(3)
    chief = start(0, hosts, "log(group.all_gather(b'a'))")
    worker = start(1, hosts, "group.all_gather(b'b')")
    assert worker.stdout is not None
    worker.stdout.readline()
    time.sleep(2.0)
    with pytest.raises(UsageError, match="seed"):
        request(port_of(hosts[0]), ProcessInfo(tuple(hosts), 1, hosts[0]), FINGERPRINT | {"seed": "1"})
    last = start(2, hosts, "group.all_gather(b'c')")
    results = results_of([chief, worker, last])
    assert [code for code, _ in results] == [0, 0, 0]
    assert results[0][1].endswith("[b'a', b'b', b'c']\n")


class Recorder:
    """Proxy in front of the chief that records what a worker sends."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target, self.sent = target, bytearray()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.is_done = threading.Event()
        threading.Thread(target=self._relay, daemon=True).start()

    def _relay(self) -> None:
        with self.server, closing(self.server.accept()[0]) as client, closing(connect(self.target)) as chief:
            back = threading.Thread(target=self._copy, args=(chief, client, None))
            back.start()
            self._copy(client, chief, self.sent)
            back.join()
        self.is_done.set()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket, record: bytearray | None) -> None:
        try:
            while data := source.recv(1 << 16):
                if record is not None:
                    record += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def test_replayed_handshake_is_rejected_and_the_run_completes() -> None:
    hosts = addresses(3)
    chief = start(0, hosts, "log(group.all_gather(b'a'))", secret=SECRET)
    recorder = Recorder(port_of(hosts[0]))
    process = ProcessInfo(tuple(hosts), 1, hosts[0], SECRET.encode())
    host, _, port = recorder.address.rpartition(":")
    with closing(socket.create_connection((host, int(port)))) as admitted:
        request_membership(Connection(admitted, 5.0), process, FINGERPRINT)
    assert recorder.is_done.wait(10)
    recorded = bytes(recorder.sent)
    assert recorded.startswith(HELLO)
    assert JOIN in recorded
    with closing(connect(port_of(hosts[0]))) as stranger:
        stranger.sendall(recorded)
        connection = Connection(stranger, 5.0)
        assert connection.receive()[0] == CHALLENGE
        assert connection.receive() == (REJECT, b"")
    workers = [start(index, hosts, "group.all_gather(b'b')", secret=SECRET) for index in (1, 2)]
    results = results_of([chief, *workers])
    assert [code for code, _ in results] == [0, 0, 0]
    assert "rejected a connection: 127.0.0.1, another TRAINER_GROUP_SECRET" in results[0][1]


@contextmanager
def impostor(host: str, replies: list[tuple[bytes, bytes]]) -> Iterator[list[bytes]]:
    """Listen at the address of a chief and answer the handshake with `replies`; yield the received kinds."""
    received: list[bytes] = []
    is_ended = threading.Event()

    def answer(server: socket.socket) -> None:
        while not is_ended.is_set():
            with suppress(OSError), closing(server.accept()[0]) as accepted:
                connection = Connection(accepted, 5.0)
                for kind, data in replies:
                    received.append(connection.receive()[0])
                    connection.send(kind, data)
                received.append(connection.receive()[0])

    with socket.create_server(port_of(host)) as server:
        server.settimeout(0.2)
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        try:
            yield received
        finally:
            is_ended.set()
            thread.join()


@pytest.mark.parametrize(
    "last",
    [
        (ADMIT, b""), (ADMIT, bytes(32)), (REJECT, bytes(32) + b'{"differences": ["seed"]}'),
        (b"b", json.dumps({"exit_code": 2, "message": "stop"}).encode()), (b"w", b""),
    ],
    ids=["admit", "admit with a wrong MAC", "reject", "bye", "welcome"],
)  # fmt: skip
def test_impostor_at_the_address_of_the_chief_neither_admits_nor_ends_a_worker(
    last: tuple[bytes, bytes],
) -> None:
    hosts = addresses(2)
    with impostor(hosts[0], [(CHALLENGE, bytes(32)), last]) as received:
        worker = start(1, hosts, WORKER, secret=SECRET)
        until = time.monotonic() + 20
        while received.count(JOIN) < 2:
            assert worker.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
    results = results_of([start(0, hosts, CHIEF, secret=SECRET), worker])
    assert [code for code, _ in results] == [0, 0], results
    assert "the chief has another TRAINER_GROUP_SECRET" in results[1][1]


def test_idle_connections_do_not_delay_the_run() -> None:
    """300 idle connections would exceed the time limit if they were handled one at a time."""
    hosts = addresses(2)
    chief = start(0, hosts, CHIEF, seconds=20.0)
    with ExitStack() as strangers:
        for _ in range(300):
            stranger = strangers.enter_context(closing(connect(port_of(hosts[0]))))
            stranger.sendall(b"h\0\0")
        require_completed(chief, hosts)


def test_continuous_flood_of_half_open_connections_does_not_keep_a_worker_out() -> None:
    hosts = addresses(2)
    chief = start(0, hosts, CHIEF, seconds=30.0, secret=SECRET)
    connect(port_of(hosts[0])).close()
    is_ended, opened = threading.Event(), [0]

    def flood() -> None:
        idle: list[socket.socket] = []
        while not is_ended.is_set():
            try:
                idle.append(socket.create_connection(port_of(hosts[0]), timeout=1))
                opened[0] += 1
            except OSError:
                time.sleep(0.01)
            if len(idle) > 2 * _MAX_PENDING:
                idle.pop(0).close()
        for each in idle:
            each.close()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        until = time.monotonic() + 20
        while opened[0] <= _MAX_PENDING and time.monotonic() < until:
            time.sleep(0.01)
        require_completed(chief, hosts, SECRET)
    finally:
        is_ended.set()
        thread.join()
    assert opened[0] > _MAX_PENDING


def test_full_list_of_pending_connections_drops_the_oldest_of_the_busiest_host() -> None:
    pending = _PendingConnections()
    with ExitStack() as stack:

        def add(host: str) -> socket.socket:
            near, far = (stack.enter_context(end) for end in socket.socketpair())
            pending.add(near, host)
            far.setblocking(False)
            return far

        worker = add("10.0.0.1")
        flood = [add("10.0.0.66") for _ in range(_MAX_PENDING)]
        assert flood[0].recv(1) == b""  # ended
        for end in (worker, *flood[1:]):
            with pytest.raises(BlockingIOError):
                end.recv(1)


def test_log_of_rejected_connections_is_limited() -> None:
    lines: list[str] = []
    server = _RendezvousServer(ProcessInfo(("a:1", "b:1"), 0, "a:2"), {}, lines.append, 1.0)
    for turn in range(3):
        for number in range(1000):
            server._count_rejection(f"10.0.{number // 256}.{number % 256}, no valid handshake")
        assert len(lines) == 21, turn
    assert sum(server.rejections.values()) == 3000


@pytest.mark.parametrize("kind", [ADMIT, REJECT])
def test_reflected_proof_of_the_worker_does_not_prove_that_the_chief_is_a_member(kind: bytes) -> None:
    near, far = tcp_pair()
    with closing(near), closing(far):
        errors: list[BaseException] = []

        def join() -> None:
            try:
                process = ProcessInfo(("a:1", "b:1"), 1, "a:2", SECRET.encode())
                request_membership(Connection(near, 5.0), process, FINGERPRINT)
            except (OSError, UsageError) as error:
                errors.append(error)

        thread = threading.Thread(target=join)
        thread.start()
        impostor_end = Connection(far, 5.0)
        impostor_end.receive()
        impostor_end.send(CHALLENGE, bytes(32))
        _, proof = impostor_end.receive()
        impostor_end.send(kind, proof)
        thread.join(10)
    (error,) = errors
    assert isinstance(error, RejectedError)


def test_connection_with_a_high_file_descriptor_is_checked() -> None:
    """A flood of connections raises the numbers of the file descriptors above the limit of select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    near, far = tcp_pair()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
        high = socket.socket(fileno=fcntl.fcntl(near.fileno(), fcntl.F_DUPFD, 1500))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with closing(near), closing(high):
        connection = Connection(high, 5.0)
        assert connection.is_open()
        far.close()
        until = time.monotonic() + 5
        while connection.is_open() and time.monotonic() < until:
            time.sleep(0.01)
        assert not connection.is_open()


def test_chief_survives_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    server = _RendezvousServer(ProcessInfo(("a:1", "b:1"), 0, "a:2"), {}, print, 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())

        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("cannot start new thread")

        with closing(client), monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            server._accept(listening)
            assert client.recv(1) == b""
