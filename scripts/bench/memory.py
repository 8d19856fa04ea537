"""Resident memory of decoding and training reads, by size of the data; used by bench.py.

Measures peaks in a fresh process, for data of the size of the cache budget and of ten times that: VmRSS, and
RssAnon, the anonymous memory that only the process itself can free. Both are sampled every 10 ms.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE = 128
_BUDGET_MIB = 24


def peaks() -> dict[str, float]:
    """Return the peaks in MiB, by data size and kind of memory."""
    figures: dict[str, float] = {}
    for times in (1, 10):
        with tempfile.TemporaryDirectory() as folder:
            images = _BUDGET_MIB * times * (1 << 20) // (_SIDE * _SIDE * 3)
            _make_images(Path(folder) / "data", images)
            done = subprocess.run(
                [sys.executable, __file__, folder],
                capture_output=True,
                text=True,
                check=True,
                cwd=Path(__file__).parents[2],
            )
            for line in done.stdout.splitlines():
                name, _, value = line.partition("=")
                figures[f"{times} x {_BUDGET_MIB} MiB of pixels, {name}"] = float(value)
    return figures


def _make_images(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / ("a" if index % 2 else "b") / f"{index}.jpg")


def _work(folder: Path) -> None:
    """Decode all images, then read three epochs as training does."""
    from trainer.data.load import load_dataset
    from trainer.data.progress import SilentProgress
    from trainer.spec import DataSpec
    from trainer.training.prefetch import BatchPrefetcher

    spec = DataSpec(source=str(folder / "data"), image_size=_SIDE, cache_mib=_BUDGET_MIB)
    dataset = load_dataset(spec, folder / "cache", SilentProgress(), lambda rejected: None)
    prefetcher = BatchPrefetcher(dataset.train, 32, 0)
    prefetcher.block_steps = 8
    for block in prefetcher.blocks(0, 3 * prefetcher.steps_per_epoch):
        block.images.sum()


def _sample(peak: dict[str, float], stop: threading.Event) -> None:
    while not stop.is_set():
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in peak:
                peak[name] = max(peak[name], int(value.split()[0]) / 1024)
        time.sleep(0.01)


if __name__ == "__main__":
    import tensorflow as tf  # noqa: F401  both measurements include its own memory

    highest = {"VmRSS": 0.0, "RssAnon": 0.0}
    ended = threading.Event()
    sampler = threading.Thread(target=_sample, args=(highest, ended), daemon=True)
    sampler.start()
    _work(Path(sys.argv[1]))
    ended.set()
    sampler.join()
    for name, value in highest.items():
        print(f"{name}={value}")
