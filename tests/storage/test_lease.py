"""The run lease: mutual exclusion between local processes and with holders on other machines."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest

from trainer.errors import TemporaryError
from trainer.storage.lease import take_lease
from trainer.storage.store import Store

EXPIRY = 1.2
HOLD = """
import sys, time
from trainer.storage.lease import take_lease
from trainer.storage import open_store
lease = take_lease(open_store(sys.argv[1]), "run.lease", print, float(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def store(either_store: Store) -> Store:
    return either_store


def holder(store: Store, expiry: float = EXPIRY) -> subprocess.Popen[str]:
    """Start a process and return it once it holds the lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, store.uri, str(expiry)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def elsewhere(store: Store) -> None:
    """Write the lease of a process on another machine."""
    store.write("run.lease", json.dumps({"host": "gone-1", "pid": 7, "boot": "other", "beats": 3}).encode())


def test_second_process_is_refused_with_the_name_of_the_live_holder(store: Store) -> None:
    process, heard = holder(store), []
    try:
        with pytest.raises(TemporaryError, match=f"process {process.pid} on .*run.lease"):
            take_lease(store, "run.lease", heard.append, EXPIRY)
    finally:
        end(process)
    assert len(heard) == 1


def test_killed_holder_of_this_machine_is_replaced_at_once(store: Store) -> None:
    process, heard = holder(store, expiry=3600.0), []
    end(process)
    take_lease(store, "run.lease", heard.append, 3600.0).release()
    assert heard == []
    assert store.read("run.lease") is None


def test_silent_holder_of_another_machine_is_replaced_after_the_expiry(store: Store) -> None:
    elsewhere(store)
    heard: list[str] = []
    lease = take_lease(store, "run.lease", heard.append, EXPIRY)
    assert "process 7 on gone-1" in heard[0]
    lease.require()
    lease.release()


def test_lease_that_is_released_during_the_wait_is_acquired(store: Store) -> None:
    elsewhere(store)
    threading.Timer(EXPIRY / 3, store.remove, ["run.lease"]).start()
    take_lease(store, "run.lease", lambda text: None, 3600.0 / 1000).release()


def test_holder_that_was_paused_too_long_finds_its_lease_lost(store: Store) -> None:
    lease = take_lease(store, "run.lease", print, 3600.0)
    elsewhere(store)
    lease.require()  # no store access: the last heartbeat is recent
    lease._beat_at -= 3600.0  # as after a pause
    with pytest.raises(TemporaryError, match="Another process has taken over this run"):
        lease.require()
    lease.release()
    assert json.loads(store.read("run.lease").data)["host"] == "gone-1"  # type: ignore[union-attr]


def test_heartbeat_detects_a_lost_lease(store: Store) -> None:
    lease = take_lease(store, "run.lease", print, EXPIRY)
    time.sleep(EXPIRY)
    assert json.loads(store.read("run.lease").data)["beats"] >= 2  # type: ignore[union-attr]
    elsewhere(store)
    time.sleep(EXPIRY / 2)
    with pytest.raises(TemporaryError):
        lease.require()
    lease.release()


def test_one_of_eight_processes_acquires_the_lease(store: Store) -> None:
    code = HOLD.replace("time.sleep(60)", "time.sleep(4)")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, store.uri, "2"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(8)
    ]  # fmt: skip
    outputs = [racer.communicate() for racer in racers]
    assert sum("held" in output for output, _ in outputs) == 1
    assert sum("Another process is working" in errors for _, errors in outputs) == 7
