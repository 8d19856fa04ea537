"""The process group, with real processes on loopback: rendezvous, exchange and failure detection."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from helpers.free_ports import addresses
from helpers.group_processes import results_of, start, wait_for_line

from trainer.distributed import ProcessGroup, ProcessInfo, process_group
from trainer.distributed.connection import DATA, PING, Connection
from trainer.errors import TemporaryError


def test_all_gather_returns_the_data_of_all_processes_in_their_order() -> None:
    part = """
large = bytes([index]) * 3_000_000
assert group.all_gather(large) == [bytes([number]) * 3_000_000 for number in range(3)]
assert group.all_gather(b"") == [b""] * 3
for turn in range(200):
    expected = [b"%d of %d" % (turn, number) for number in range(3)]
    assert group.all_gather(b"%d of %d" % (turn, index)) == expected
assert group.broadcast(b"from %d" % index) == b"from 0"
log("done")
"""
    hosts = addresses(3)
    processes = [start(index, hosts, part) for index in (2, 0, 1)]
    assert [(code, text.splitlines()[-1]) for code, text in results_of(processes)] == [(0, "done")] * 3


def test_rendezvous_waits_for_late_processes_and_replaces_restarted_ones() -> None:
    hosts = addresses(3)
    chief, first = (
        start(0, hosts, "log(group.all_gather(b'%d' % index))"),
        start(1, hosts, "group.all_gather(b'x')"),
    )
    time.sleep(2.0)
    first.kill()
    first.communicate()
    last = start(2, hosts, "group.all_gather(b'%d' % index)")
    time.sleep(2.0)  # two workers have connected, one of which is dead
    again = start(1, hosts, "group.all_gather(b'%d' % index)")
    assert results_of([chief, last, again])[0] == (0, "[b'0', b'1', b'2']\n")


def test_missing_worker_is_named_by_all_processes() -> None:
    hosts = addresses(3)
    (code, text), (other_code, other_text) = results_of([start(0, hosts, "", 2.0), start(1, hosts, "", 10.0)])
    assert (code, other_code) == (75, 75)
    for output in (text, other_text):
        assert f"missing: worker 2 ({hosts[2]})" in output


def test_missing_chief_is_named() -> None:
    hosts = addresses(2)
    ((code, text),) = results_of([start(1, hosts, "", 1.5)])
    assert code == 75
    assert f"The chief, {hosts[0]}, did not start the run within 1.5 s" in text


def test_long_message_to_one_process_delays_no_ping() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near, far = socket.create_connection(server.getsockname()), server.accept()[0]
    with closing(near), closing(far):
        connection = Connection(near, 20.0)
        sender = threading.Thread(target=connection.send, args=(DATA, bytes(50_000_000)))
        sender.start()
        while not far.recv(1, socket.MSG_PEEK):
            pass
        before = threading.active_count()
        pinging = threading.Thread(target=connection.ping)
        pinging.start()
        pinging.join(5)
        assert not pinging.is_alive()
        assert threading.active_count() == before  # the message is still being sent
        received = 0
        while received < 50_000_000 + 9:
            received += len(far.recv(1 << 20))
        sender.join()
        connection.ping()
        assert far.recv(100)[:1] == PING


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_killed_process_ends_all_others_with_75_and_its_name(killed: int) -> None:
    hosts = addresses(3)
    processes = [start(index, hosts, "group.all_gather(b''); log('met'); group.all_gather(b'') if index != "
                 f"{killed} else time.sleep(60)") for index in range(3)]  # fmt: skip
    for process in processes:
        wait_for_line(process, "met")
    processes[killed].send_signal(signal.SIGKILL)
    started_at = time.monotonic()
    results = results_of(processes)
    assert time.monotonic() - started_at < 10
    for index, (code, text) in enumerate(results):
        if index != killed:
            assert code == 75
            assert f"Lost connection to worker {killed} ({hosts[killed]}); stopping all workers." in text


def test_silent_process_counts_as_lost() -> None:
    hosts = addresses(2)
    chief = start(0, hosts, "group.all_gather(b''); log('met'); group.all_gather(b'')", silence=4.0)
    other = start(1, hosts, "group.all_gather(b''); log('met'); time.sleep(60)")
    wait_for_line(other, "met")
    other.send_signal(signal.SIGSTOP)
    try:
        ((code, text),) = results_of([chief])
    finally:
        other.kill()
        other.communicate()
    assert code == 75
    assert "Lost connection to worker 1" in text


@pytest.mark.parametrize("failed", [0, 1])
def test_error_of_one_process_ends_all_with_its_code_and_message(failed: int) -> None:
    hosts = addresses(3)
    part = f"""
from trainer.errors import DataError
if index == {failed}:
    raise DataError("no such images")
group.all_gather(b"")
"""
    results = results_of([start(index, hosts, part) for index in range(3)])
    assert [code for code, _ in results] == [65] * 3
    for index, (_, text) in enumerate(results):
        assert "no such images" in text
        assert index == failed or f": worker {failed} ({hosts[failed]}): no such images" in text


def test_failure_action_is_called_when_another_process_ends() -> None:
    hosts = addresses(2)
    waiting = "group.on_failure(lambda error: (log('called'), os._exit(error.exit_code))); time.sleep(60)"
    results = results_of([start(0, hosts, waiting), start(1, hosts, "raise StoppedError('on request')")])
    assert [code for code, _ in results] == [143, 143]
    assert "called" in results[0][1]


@contextmanager
def connected_pair() -> Iterator[tuple[ProcessGroup, ProcessGroup]]:
    """Yield the chief and the worker of a group of two processes, both in this process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near, far = socket.create_connection(server.getsockname()), server.accept()[0]
    with closing(near), closing(far):
        names = ("a:1", "b:1")
        chief = ProcessGroup(ProcessInfo(names, 0, "a:2"), {1: Connection(near, 20.0)})
        yield chief, ProcessGroup(ProcessInfo(names, 1, "a:2"), {0: Connection(far, 20.0)})


def test_process_that_leaves_early_is_named_at_once() -> None:
    with connected_pair() as (chief, worker):
        threading.Thread(target=worker.shutdown).start()
        started_at = time.monotonic()
        with pytest.raises(TemporaryError, match=r"worker 1 \(b:1\) left the run before the end"):
            chief.all_gather(b"")
        assert time.monotonic() - started_at < 2


def test_process_that_left_after_the_end_is_not_reported_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "PING_SECONDS", 0.05)
    failures: list[object] = []
    with connected_pair() as (chief, worker):
        chief.on_failure(failures.append)
        threading.Thread(target=worker.all_gather, args=(b"",)).start()
        assert chief.all_gather(b"") == [b"", b""]
        worker.shutdown()  # the chief goes on, for example with the gates
        time.sleep(0.5)
        chief.raise_if_failed()
    assert failures == []
