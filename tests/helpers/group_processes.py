"""Processes of a process group that run a piece of code, and their results."""

from __future__ import annotations

import json
import subprocess
import sys

from trainer.distributed.process_group import SILENCE_SECONDS

BEGIN = """
import json, os, signal, sys, threading, time
from trainer.errors import StoppedError, TrainerError
from trainer.distributed import ProcessInfo, join_process_group
index, addresses, seconds = int(sys.argv[1]), tuple(json.loads(sys.argv[2])), float(sys.argv[3])
process = ProcessInfo(addresses, index, addresses[0], os.environ.get("SECRET", "").encode())
def log(text): print(text, flush=True)
try:
    silence, fingerprint = float(os.environ["SILENCE"]), {"train.epochs": os.environ["EPOCHS"], "seed": "0"}
    group = join_process_group(process, fingerprint, seconds, log, silence)
    try:
        exec(os.environ["PART"])
    except TrainerError as error:
        group.shutdown(error.exit_code, str(error))
        raise
    group.shutdown()
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
    epochs: str = "3",
    silence: float = SILENCE_SECONDS,
    secret: str = "",
) -> subprocess.Popen[str]:
    """Start process `index` of a group, which joins within `seconds` and then runs the code `part`."""
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(index), json.dumps(hosts), str(seconds)],
        env={"PART": part, "EPOCHS": epochs, "SILENCE": str(silence), "SECRET": secret},
        stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT,
    )  # fmt: skip


def results_of(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Wait for the processes; return the exit code and output of each."""
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, outputs, strict=True)]


def wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    while (text := process.stdout.readline()) != f"{line}\n":
        assert text, "the process has ended"
