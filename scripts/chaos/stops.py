"""Time from SIGTERM to process exit: on disk, and to a bucket over a 20 MB/s connection."""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
from helpers.fault_proxy import fault_proxy

from chaos.fixtures import Attempt, emulated_bucket, make_images
from trainer.runs.publish import is_finished
from trainer.storage import open_store

BYTES_PER_SECOND = 20e6
MAX_SECONDS = {"disk": 5.0, "bucket": 10.0}
"""Limits in seconds for the 95th percentile of the time from the signal to the exit."""
GRACE_SECONDS = 10.0
"""Default of train.grace_seconds."""
_STOPPED = re.compile(r"after step (\d+) of \d+; the checkpoint is safe")
SETTINGS = [
    "data.image_size=32", "train.epochs=1000", "train.global_batch_size=16", "train.ema_decay=0.99",
    "train.log_interval_seconds=0.1", "model={filters: [48, 96, 192, 384], blocks: [1, 1, 1, 1]}",
]  # fmt: skip


def main(times: int, seed: int) -> list[str]:
    """Stop `times` runs in each location; return the failures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_images(folder / "images", side=32)
        problems = _stop_anywhere(str(folder / "anywhere"), data, folder, times, seed)
        problems += _stop("disk", str(folder / "disk"), data, folder, times, seed)
        with emulated_bucket("stops") as output:
            clean = os.environ["STORAGE_EMULATOR_HOST"]
            with fault_proxy(clean, lambda *_: None, bytes_per_second=BYTES_PER_SECOND) as proxy:
                os.environ["STORAGE_EMULATOR_HOST"] = proxy.address
                problems += _stop("bucket", output, data, folder, times, seed)
        return problems


def _stop_anywhere(output: str, data: Path, folder: Path, times: int, seed: int) -> list[str]:
    """Stop runs of two epochs at any moment: imports, data loading, compilation, export, report."""
    rng, seconds, problems = random.Random(seed), [], []
    settings = [part for setting in [*SETTINGS, "train.epochs=2"] for part in ("--set", setting)]
    arguments = ["--data", str(data), "--output", output, *settings]
    whole = Attempt([*arguments, "--run-name", "whole"], folder / "cache")
    if whole.end():
        raise SystemExit(whole.text())
    duration = time.monotonic() - whole.started
    for turn in range(times):
        attempt = Attempt([*arguments, "--run-name", f"run-{turn}"], folder / "cache")
        if not attempt.wait_for("trainer "):  # from here on the signal handler is installed
            raise SystemExit(attempt.text())
        time.sleep(rng.uniform(0.0, 0.95 * duration))
        # Exit code 0 is right only if the run was finished when the signal was sent.
        is_done = is_finished(open_store(output).below(f"run-{turn}"))
        started = time.monotonic()
        attempt.process.send_signal(signal.SIGTERM)
        code = attempt.end()
        if not is_done:
            seconds.append(time.monotonic() - started)
        if (code != 143 and not (is_done and code == 0)) or "Traceback" in attempt.text():
            problems.append(f"anywhere, stop {turn}: exit {code}\n{attempt.text()[-500:]}")
    print(
        f"anywhere in a run of {duration:.1f} s: {len(seconds)} stops, median {np.median(seconds):.2f} s, "
        f"95th percentile {np.percentile(seconds, 95):.2f} s, longest {max(seconds):.2f} s",
        flush=True,
    )
    if max(seconds) > GRACE_SECONDS + 1:
        problems.append(f"anywhere: {max(seconds):.2f} s exceeds the grace period of {GRACE_SECONDS:g} s")
    return problems


def _stop(location: str, output: str, data: Path, folder: Path, times: int, seed: int) -> list[str]:
    rng, seconds, problems = random.Random(seed), [], []
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    arguments = ["--data", str(data), "--output", output, "--run-name", "run", *settings]
    saved = 0
    for turn in range(times):
        attempt = Attempt(arguments, folder / "cache")
        if not attempt.wait_for('"event": "progress"'):
            raise SystemExit(attempt.text())
        if attempt.resumed_step() != saved:
            problems.append(
                f"{location}, stop {turn}: resumed after step {attempt.resumed_step()} instead of {saved}"
            )
        time.sleep(rng.uniform(0.0, 5.0))
        started = time.monotonic()
        attempt.process.send_signal(signal.SIGTERM)
        code = attempt.end()
        seconds.append(time.monotonic() - started)
        match = _STOPPED.search(attempt.text())
        saved = int(match[1]) if match else -1
        if code != 143 or not match:
            problems.append(f"{location}, stop {turn}: exit {code}\n{attempt.text()[-500:]}")
    p95 = float(np.percentile(seconds, 95))
    print(
        f"{location}: {times} stops, median {np.median(seconds):.2f} s, "
        f"95th percentile {p95:.2f} s, longest {max(seconds):.2f} s",
        flush=True,
    )
    if p95 > MAX_SECONDS[location]:
        problems.append(f"{location}: {p95:.2f} s exceeds {MAX_SECONDS[location]} s")
    return problems
