"""Two processes on two cores against one process with two threads, on the paper's network."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scale.setups import environments
from scale.turns import BATCH, CALLS, STEPS, write

HERE = Path(__file__).resolve().parent
MIN_RATIO = 0.85
IMAGES = 2000
"""Training images, as many as in the paper."""
_TIMEOUT_SECONDS = 240.0


@dataclass(frozen=True)
class Measured:
    """Timings of two processes and of one."""

    one: list[float]
    """Seconds per step of one process with two threads, one value per turn."""
    two: list[float]
    """Seconds per step of two processes with one thread each, measured alternately."""
    whole: float
    """Mean seconds of a step of the two processes, with its all-reduce."""
    bare: float
    """Mean seconds of a step of the chief without the all-reduce."""
    slowest: float
    """Mean seconds of the slower process in each step without the all-reduce, which would wait for it."""
    alone: float
    """Seconds of such an all-reduce alone."""
    gradient_bytes: int
    link: dict[int, float]
    """Size in bytes -> seconds of an all-reduce."""

    @property
    def ratio(self) -> float:
        """Throughput of two processes / one process."""
        return statistics.median(one / two for one, two in zip(self.one, self.two, strict=True))


def main(times: int, seed: int) -> list[str]:
    """Measure `times` pairs of turns; return the failures."""
    measured = measure(times)
    ratios = [one / two for one, two in zip(measured.one, measured.two, strict=True)]
    rates = [BATCH / statistics.median(seconds) for seconds in (measured.one, measured.two)]
    print(
        f"the paper's network, batch {BATCH}, 150 px, float32: 2 processes {rates[1]:.1f} images/s, 1 "
        f"process with 2 threads {rates[0]:.1f}; ratio {measured.ratio:.3f} (median of {len(ratios)} "
        f"pairs of {CALLS * STEPS} steps, {min(ratios):.2f} to {max(ratios):.2f}); required at least "
        f"{MIN_RATIO}"
    )
    saving, waiting = 1 - measured.bare / measured.whole, 1 - measured.bare / measured.slowest
    print(
        f"communication: {measured.alone / measured.whole:.1%} of a step is the all-reduce itself "
        f"({1e3 * measured.alone:.1f} ms for {measured.gradient_bytes / 1e6:.2f} MB); without it a step "
        f"takes {1e3 * measured.bare:.1f} ms instead of {1e3 * measured.whole:.1f}, {saving:.1%} less; "
        f"waiting for the slower process in each step would explain {waiting:.1%}"
    )
    return [] if measured.ratio >= MIN_RATIO else [f"{measured.ratio:.3f} is below {MIN_RATIO}"]


def measure(times: int) -> Measured:
    """Start both setups side by side, and let them train in turns."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = _make_images(folder / "images")
        starts = {"one": ["0,1"], "two": ["0", "1"]}
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for name, cores in starts.items():
                for core, environment in zip(cores, environments(len(cores)), strict=True):
                    command = [
                        sys.executable,
                        str(HERE / "turns.py"),
                        str(folder),
                        name,
                        core,
                        str(data),
                    ]
                    processes.append(subprocess.Popen(command, env={**os.environ, **environment}))
            for name in starts:
                _wait(folder / f"{name}-0.json", processes)
            seconds: dict[str, list[float]] = {name: [] for name in starts}
            for turn in range(1, times + 1):
                for name in sorted(starts, reverse=bool(turn % 2)):
                    (folder / f"{name}-{turn}.go").touch()
                    duration = _wait(folder / f"{name}-{turn}.json", processes)
                    seconds[name].append(duration / (CALLS * STEPS))
            for name in starts:
                write(folder / f"{name}.end", True)
            sums = _wait(folder / "two.json", processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    link = {int(size): value for size, value in sums["link"].items()}
    values: dict[str, Any] = {**sums, "link": link, **seconds}
    return Measured(**values)


def _make_images(folder: Path) -> Path:
    """Write as many JPEG images of two classes as in the paper, 150 x 150 pixels; return the folder."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES + 40):
        split = "train" if number < IMAGES else "validation"
        path = folder / split / ("cats", "dogs")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (10, 10, 3)).astype(np.uint8)
        Image.fromarray(small).resize((150, 150)).save(path)
    return folder


def _wait(path: Path, processes: list[subprocess.Popen[bytes]]) -> Any:
    """Wait for the JSON file at `path`; return its content."""
    until = time.monotonic() + _TIMEOUT_SECONDS
    while not path.exists():
        if time.monotonic() > until or any(process.poll() for process in processes):
            raise SystemExit(
                f"{path.name} was not written; exit codes {[process.poll() for process in processes]}"
            )
        time.sleep(0.005)
    return json.loads(path.read_text())
