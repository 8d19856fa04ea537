"""SIGTERM to the end of the process: on disk, and through a line of 20 MB/s to a bucket."""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
from chaos_places import Attempt, bucket_place, make_images
from fault_proxy import fault_proxy

BYTES_PER_SECOND = 20e6
_STOPPED = re.compile(r"after step (\d+) of \d+; the checkpoint is safe")
SETTINGS = [
    "data.image_size=32", "train.epochs=1000", "train.global_batch_size=16", "train.ema_decay=0.99",
    "train.log_interval_seconds=0.1", "model={filters: [48, 96, 192, 384], blocks: [1, 1, 1, 1]}",
]  # fmt: skip


def main(times: int, seed: int) -> list[str]:
    """Stop `times` runs in each place; return those that ended wrongly."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_images(folder / "images", side=32)
        problems = _stop(str(folder / "disk"), data, folder, times, seed)
        with bucket_place("stops") as output:
            clean = os.environ["STORAGE_EMULATOR_HOST"]
            with fault_proxy(clean, lambda *_: None, bytes_per_second=BYTES_PER_SECOND) as proxy:
                os.environ["STORAGE_EMULATOR_HOST"] = proxy.address
                problems += _stop(output, data, folder, times, seed)
        return problems


def _stop(output: str, data: Path, folder: Path, times: int, seed: int) -> list[str]:
    rng, seconds, problems = random.Random(seed), [], []
    settings = [each for setting in SETTINGS for each in ("--set", setting)]
    arguments = ["--data", str(data), "--output", output, "--run-name", "run", *settings]
    saved = 0
    for turn in range(times):
        attempt = Attempt(arguments, folder / "cache")
        if not attempt.wait_for('"event": "progress"'):
            raise SystemExit(attempt.text())
        if attempt.resumed_step() != saved:
            problems.append(
                f"{output}, stop {turn}: went on after step {attempt.resumed_step()}, not {saved}"
            )
        time.sleep(rng.uniform(0.0, 5.0))
        started = time.monotonic()
        attempt.process.send_signal(signal.SIGTERM)
        code = attempt.end()
        seconds.append(time.monotonic() - started)
        found = _STOPPED.search(attempt.text())
        saved = int(found[1]) if found else -1
        if code != 143 or not found:
            problems.append(f"{output}, stop {turn}: exit {code}\n{attempt.text()[-500:]}")
    print(
        f"{output}: {times} stops, median {np.median(seconds):.2f} s, "
        f"95th percentile {np.percentile(seconds, 95):.2f} s, longest {max(seconds):.2f} s"
    )
    return problems
