"""The process group, with real processes on loopback: rendezvous, exchange and failure detection."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing

import pytest
from helpers.free_ports import addresses

from trainer.distributed.connection import DATA, PING, Connection
from trainer.distributed.process_group import SILENCE_SECONDS

BEGIN = """
import json, os, signal, sys, threading, time
from trainer.errors import StoppedError, TrainerError
from trainer.distributed import ProcessInfo, join_process_group, process_group as room
index, addresses, seconds = int(sys.argv[1]), tuple(json.loads(sys.argv[2])), float(sys.argv[3])
place = ProcessInfo(addresses, index, addresses[0])
def say(text): print(text, flush=True)
try:
    silence = float(os.environ["SILENCE"])
    peers = join_process_group(place, os.environ.get("SPEC", "same"), seconds, say, silence)
    try:
        exec(os.environ["PART"])
    except TrainerError as error:
        peers.shutdown(error.exit_code, str(error))
        raise
    peers.shutdown()
except TrainerError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(error.exit_code)
os._exit(0)
"""


def start(
    index: int,
    hosts: list[str],
    part: str,
    seconds: float = 20.0,
    spec: str = "same",
    silence: float = SILENCE_SECONDS,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(index), json.dumps(hosts), str(seconds)],
        env={"PART": part, "SPEC": spec, "SILENCE": str(silence)},
        stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Wait for the processes; return the exit code and output of each."""
    said = [process.communicate(timeout=60)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_all_hear_what_each_says_in_their_order() -> None:
    part = """
large = bytes([index]) * 3_000_000
assert peers.all_gather(large) == [bytes([each]) * 3_000_000 for each in range(3)]
assert peers.all_gather(b"") == [b""] * 3
for turn in range(200):
    assert peers.all_gather(b"%d of %d" % (turn, index)) == [b"%d of %d" % (turn, each) for each in range(3)]
assert peers.broadcast(b"from %d" % index) == b"from 0"
say("done")
"""
    hosts = addresses(3)
    processes = [start(index, hosts, part) for index in (2, 0, 1)]
    assert [(code, text.splitlines()[-1]) for code, text in ends(processes)] == [(0, "done")] * 3


def test_a_process_that_starts_late_is_waited_for_and_a_restarted_one_takes_its_place() -> None:
    hosts = addresses(3)
    chief, first = (
        start(0, hosts, "say(peers.all_gather(b'%d' % index))"),
        start(1, hosts, "peers.all_gather(b'x')"),
    )
    time.sleep(2.0)
    first.kill()
    first.communicate()
    last = start(2, hosts, "peers.all_gather(b'%d' % index)")
    time.sleep(2.0)  # two workers have connected, one of which is dead
    again = start(1, hosts, "peers.all_gather(b'%d' % index)")
    assert ends([chief, last, again])[0] == (0, "[b'0', b'1', b'2']\n")


def test_who_does_not_come_is_named() -> None:
    hosts = addresses(3)
    (code, told), (other_code, other_told) = ends([start(0, hosts, "", 2.0), start(1, hosts, "", 10.0)])
    assert (code, other_code) == (75, 75)
    for text in (told, other_told):
        assert f"missing are worker 2 ({hosts[2]})" in text


def test_a_chief_that_does_not_come_is_named() -> None:
    hosts = addresses(2)
    ((code, told),) = ends([start(1, hosts, "", 1.5)])
    assert code == 75
    assert f"The chief, {hosts[0]}, did not begin the run within 1.5 s" in told


def test_processes_of_different_specs_are_refused() -> None:
    hosts = addresses(2)
    found = ends([start(0, hosts, "", 10.0), start(1, hosts, "", 10.0, spec="another")])
    assert [code for code, _ in found] == [2, 2]
    assert "different specs" in found[0][1]


def connected(address: tuple[str, int]) -> socket.socket:
    """Connect to a process that may not listen yet, with retries for 20 s."""
    until = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(address, timeout=5)
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_stranger_at_the_door_does_no_harm() -> None:
    hosts = addresses(2)
    chief = start(0, hosts, "say(peers.all_gather(b'a'))")
    address = ("127.0.0.1", int(hosts[0].rpartition(":")[2]))
    deep, endless = b"[" * 200_000, b'{"index": Infinity, "count": 2}'
    hellos = [b"h" + len(each).to_bytes(8, "big") + each for each in (b"{}", deep, endless, b"7" * 9**5)]
    for said in (b"GET / HTTP/1.1\r\n\r\n", *hellos, b"h" + b"\xff" * 8, b""):
        with closing(connected(address)) as stranger:
            stranger.sendall(said)
    assert ends([chief, start(1, hosts, "peers.all_gather(b'b')")])[0] == (0, "[b'a', b'b']\n")


def test_those_who_say_nothing_or_trickle_hold_nobody_up() -> None:
    """300 idle connections would exceed the time limit if they were handled one at a time."""
    hosts = addresses(2)
    chief = start(0, hosts, "say(peers.all_gather(b'a'))", seconds=20.0)
    address = ("127.0.0.1", int(hosts[0].rpartition(":")[2]))
    with ExitStack() as strangers:
        for _ in range(300):
            stranger = strangers.enter_context(closing(connected(address)))
            stranger.sendall(b"h\0\0")
        worker = start(1, hosts, "peers.all_gather(b'b')")
        assert ends([chief, worker])[0] == (0, "[b'a', b'b']\n")


def test_a_long_message_to_one_keeps_no_other_waiting_for_a_sign_of_life() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here, there = socket.create_connection(server.getsockname()), server.accept()[0]
    with closing(here), closing(there):
        wire = Connection(here, 20.0)
        sender = threading.Thread(target=wire.send, args=(DATA, bytes(50_000_000)))
        sender.start()
        while not there.recv(1, socket.MSG_PEEK):
            pass
        before = threading.active_count()
        pinging = threading.Thread(target=wire.ping)
        pinging.start()
        pinging.join(5)
        assert not pinging.is_alive()
        assert threading.active_count() == before  # the message is still being sent
        heard = 0
        while heard < 50_000_000 + 9:
            heard += len(there.recv(1 << 20))
        sender.join()
        wire.ping()
        assert there.recv(100)[:1] == PING


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_when_one_is_killed_all_others_end_with_75_and_its_name(killed: int) -> None:
    hosts = addresses(3)
    processes = [start(index, hosts, "peers.all_gather(b''); say('met'); peers.all_gather(b'') if index != "
                 f"{killed} else time.sleep(60)") for index in range(3)]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        while process.stdout.readline() != "met\n":
            pass
    processes[killed].send_signal(signal.SIGKILL)
    began = time.monotonic()
    found = ends(processes)
    assert time.monotonic() - began < 10
    for index, (code, text) in enumerate(found):
        if index != killed:
            assert code == 75
            assert f"worker {killed} ({hosts[killed]}) is gone" in text


def test_one_that_says_nothing_any_more_is_gone_too() -> None:
    hosts = addresses(2)
    chief = start(0, hosts, "peers.all_gather(b''); say('met'); peers.all_gather(b'')", silence=4.0)
    other = start(1, hosts, "peers.all_gather(b''); say('met'); time.sleep(60)")
    assert other.stdout is not None
    while other.stdout.readline() != "met\n":
        pass
    other.send_signal(signal.SIGSTOP)
    try:
        ((code, text),) = ends([chief])
    finally:
        other.kill()
        other.communicate()
    assert code == 75
    assert "is gone" in text


@pytest.mark.parametrize("who", [0, 1])
def test_when_one_ends_with_an_error_all_end_with_it(who: int) -> None:
    hosts = addresses(3)
    part = f"""
from trainer.errors import DataError
if index == {who}:
    raise DataError("no such images")
peers.all_gather(b"")
"""
    found = ends([start(index, hosts, part) for index in range(3)])
    assert [code for code, _ in found] == [65] * 3
    for index, (_, text) in enumerate(found):
        assert "no such images" in text
        assert index == who or f"worker {who} ({hosts[who]}): no such images" in text


def test_who_waits_elsewhere_is_called_when_another_one_ends() -> None:
    hosts = addresses(2)
    waiting = "peers.on_failure(lambda error: (say('called'), os._exit(error.exit_code))); time.sleep(60)"
    found = ends([start(0, hosts, waiting), start(1, hosts, "raise StoppedError('asked to')")])
    assert [code for code, _ in found] == [143, 143]
    assert "called" in found[0][1]
