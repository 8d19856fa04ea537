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
    print("working", flush=True)
    time.sleep(60)
def call():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def stop_process(code: str, signals: int = 1) -> tuple[int, float, str]:
    """Run `code`, send SIGTERM once it is working; return exit code, seconds since the signal and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", _BEGIN + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    sent_at = time.monotonic()
    for index in range(signals):
        if index:
            time.sleep(1.2)  # signals in quick succession count as one request
        process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[1]
    assert "Traceback" not in output
    return process.returncode, time.monotonic() - sent_at, output


@pytest.mark.parametrize(
    "code",
    [
        "with stop.defer(): work()",
        "while True:\n    try: work()\n    except Exception: pass",
        "while True:\n    try: print('working', flush=True); call()\n    except Exception: pass",
    ],
    ids=["block without polling", "library that swallows the error", "library that does not return"],
)
def test_process_ends_after_the_grace_period_in_any_state(code: str) -> None:
    exit_code, seconds, output = stop_process(code)
    assert exit_code == 143
    assert seconds >= 0.9
    assert "completed work is kept" in output
    assert "Received: 1 s" in output


def test_second_signal_ends_the_process_at_once() -> None:
    code, _, output = stop_process(
        "stop.grace_seconds = 1e308\nstop.outcome = lambda: 'Restart to resume from step 7.'\n"
        "with stop.defer(): work()",
        signals=2,
    )
    assert code == 143
    assert output == (
        "Error: Stopped immediately on a second request; completed work is kept. "
        "Restart to resume from step 7. Received: a second signal\n"
    )


@pytest.mark.parametrize(("number", "is_interactive"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_sigint_counts_as_interactive(number: signal.Signals, is_interactive: bool) -> None:
    code = f"{_BEGIN}stop.grace_seconds = 60\ntry: work()\nexcept Exception: print(stop.interactive)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.communicate(timeout=30)[0].strip() == str(is_interactive)


def test_signals_are_ignored_after_the_work_is_done() -> None:
    code, _, output = stop_process("""
stop.ignore_signals()
print("working", flush=True)
time.sleep(1)
""")
    assert (code, output) == (0, "")


def test_handlers_are_reinstalled_after_a_library_replaced_them() -> None:
    code = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
stop.reinstall()
with stop.defer(): work()
"""
    assert stop_process(code)[0] == 143


def test_nothing_is_overdue_before_a_request() -> None:
    stop = GracefulShutdown()
    assert not stop.is_requested()
    assert not stop.is_overdue(0.0)
