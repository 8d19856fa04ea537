"""Graceful shutdown on signals, tested in subprocesses."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from trainer.shutdown import GracefulShutdown

_BEGIN = """
import hashlib, time
from trainer.shutdown import GracefulShutdown
stop = GracefulShutdown(1.0)
stop.install()
def work():
    print("at work", flush=True)
    time.sleep(60)
def call():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def stopped(code: str, signals: int = 1) -> tuple[int, float, str]:
    """Run `code`, send SIGTERM once it is at work; return exit code, seconds since the signal and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", _BEGIN + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    for index in range(signals):
        if index:
            time.sleep(1.2)  # signals in quick succession count as one request
        process.send_signal(signal.SIGTERM)
    words = process.communicate(timeout=30)[1]
    assert "Traceback" not in words
    return process.returncode, time.monotonic() - began, words


@pytest.mark.parametrize(
    "code",
    [
        "with stop.defer(): work()",
        "while True:\n    try: work()\n    except Exception: pass",
        "while True:\n    try: print('at work', flush=True); call()\n    except Exception: pass",
    ],
    ids=["a block that doesn't look", "a library that swallows it", "a library that doesn't return"],
)
def test_when_the_grace_is_over_the_process_ends_wherever_it_is(code: str) -> None:
    exit_code, seconds, words = stopped(code)
    assert exit_code == 143
    assert seconds >= 0.9
    assert "what was finished is kept" in words
    assert "Received: 1 s" in words


def test_a_second_signal_ends_it_at_once() -> None:
    code, _, words = stopped(
        "stop.grace_seconds = 1e308\nstop.outcome = lambda: 'Restart to resume from step 7.'\n"
        "with stop.defer(): work()",
        signals=2,
    )
    assert code == 143
    assert words == (
        "Error: Stopped at once on a second request; what was finished is kept. "
        "Restart to resume from step 7. Received: a second signal\n"
    )


@pytest.mark.parametrize(("number", "by_hand"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_person_is_told_from_a_machine(number: signal.Signals, by_hand: bool) -> None:
    code = f"{_BEGIN}stop.grace_seconds = 60\ntry: work()\nexcept Exception: print(stop.interactive)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.communicate(timeout=30)[0].strip() == str(by_hand)


def test_what_is_done_is_not_stopped_any_more() -> None:
    code, _, words = stopped("""
stop.ignore_signals()
print("at work", flush=True)
time.sleep(1)
""")
    assert (code, words) == (0, "")


def test_a_signal_that_a_library_took_for_itself_is_heard_again() -> None:
    code = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
stop.reinstall()
with stop.defer(): work()
"""
    assert stopped(code)[0] == 143


def test_nothing_is_overdue_before_anyone_asked() -> None:
    stop = GracefulShutdown()
    assert not stop.is_requested()
    assert not stop.is_overdue(0.0)
