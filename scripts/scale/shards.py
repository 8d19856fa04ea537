"""Training from shards: memory independent of the data size, and prefetching from a bucket.

`memory` packs and trains on 250,000 and on 2,500 images, for the same number of steps, and compares resident
memory and images/s. `bucket` trains the paper's network on shards that are downloaded from an emulated bucket
during training.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from chaos.fixtures import Attempt, emulated_bucket
from PIL import Image

from trainer.storage import open_store

IMAGES, FEW = 250_000, 2_500
_FLAT = 1.05
_WAIT_SHARE = 0.05
_RECORD_BYTES = 3073
# The same number of steps per block: an epoch of few images would otherwise have smaller blocks.
_SETTINGS = [
    "train.steps_per_call=5",
    "data.cache_mib=0", "data.shuffle_shards=4", "data.image_size=32", "train.global_batch_size=100",
    "train.validate_every_epochs=1000", "train.log_interval_seconds=1", "train.precision=float32",
    "model={family: plain, filters: [16, 32]}",
]  # fmt: skip


def memory(times: int, seed: int) -> list[str]:
    """Train on both, alternating `times` times; return the figures that change with the data size."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = {
            count: _pack_images(folder / str(count), count, folder / "cache") for count in (FEW, IMAGES)
        }
        figures: dict[int, list[tuple[float, float]]] = {FEW: [], IMAGES: []}
        for turn in range(times):
            for count, source in shards.items():
                figures[count].append(_train(source, folder, f"{count}-{turn}", IMAGES // count))
                resident_mib, speed = figures[count][-1]
                print(f"{count:>8,} images: {resident_mib:,.0f} MiB, {speed:,.0f} images/s", flush=True)
    mib, rate = (
        statistics.median(
            many[index] / few[index] for few, many in zip(figures[FEW], figures[IMAGES], strict=True)
        )
        for index in (0, 1)
    )
    print(
        f"{IMAGES:,} / {FEW:,} images: memory {mib:.3f} (at most {_FLAT}), images/s {rate:.3f} (0.95 to 1.05)"
    )
    missed = [] if mib <= _FLAT else [f"memory grows by {mib - 1:.1%}"]
    return missed + ([] if abs(rate - 1) <= 0.05 else [f"images/s change by {rate - 1:.1%}"])


def bucket(times: int, seed: int) -> list[str]:
    """Train the paper's network on shards in a bucket; return a failure if it waits too long for data."""
    with tempfile.TemporaryDirectory() as temporary, emulated_bucket("sets") as uri:
        folder = Path(temporary)
        _write_photos(folder / "images")
        _run("shard", str(folder / "images"), f"{uri}/shards", "--shard-mib", "1", cache=folder / "cache")
        packed = sum(entry.size for entry in open_store(f"{uri}/shards").entries()) / 2**20
        settings = [
            "data.cache_mib=0",
            "data.shuffle_shards=2",
            f"train.epochs={times}",
            "data.staged_mib=12",
        ]
        arguments = [
            "--recipe",
            "cats-vs-dogs",
            "--data",
            f"{uri}/shards",
            "--output",
            str(folder),
            "--run-name",
            "run",
        ]
        _run(
            "train",
            *arguments,
            *(part for setting in settings for part in ("--set", setting)),
            cache=folder / "cache",
        )
        epochs = json.loads((folder / "run" / "timings.json").read_text())["epochs"]
        staged = sum(path.stat().st_size for path in (folder / "cache").rglob("*.tfrecord")) / 2**20
    for number, epoch in enumerate(epochs, 1):
        print(f"epoch {number}: {epoch['images_per_second']:.0f} images/s, {epoch['wait_share']:.1%} waiting")
    seconds = sum(epoch["seconds"] for epoch in epochs)
    share = sum(epoch["wait_share"] * epoch["seconds"] for epoch in epochs) / seconds
    print(
        f"whole run {share:.2%} of {seconds:.0f} s (at most {_WAIT_SHARE:.0%}), from an empty disk on; "
        f"{staged:.0f} of {packed:.0f} MiB of shards on disk at the end"
    )
    return [] if share <= _WAIT_SHARE else [f"{share:.1%} of the time is spent waiting for data"]


def _pack_images(folder: Path, count: int, cache: Path) -> str:
    """Pack `count` generated images in CIFAR format into shards, as PNG; return the folder of the shards."""
    folder.mkdir()
    rng = np.random.default_rng(count)
    for name, images in (("data_batch_1.bin", count), ("test_batch.bin", 500)):
        with open(folder / name, "wb") as file:
            for start in range(0, images, FEW):
                records = rng.integers(60, 120, (min(FEW, images - start), _RECORD_BYTES), np.uint8)
                records[:, 0] = np.arange(len(records)) % 10
                records[:, 1:] += (records[:, :1] * 10).astype(np.uint8)
                file.write(records.tobytes())
    began = time.monotonic()
    shards = folder.with_name(f"{folder.name}-shards")
    _run("shard", str(folder), str(shards), "--shard-mib", "8", cache=cache)
    print(f"{count:>8,} images packed in {time.monotonic() - began:.0f} s", flush=True)
    for path in folder.glob("*.bin"):
        path.unlink()
    return str(shards)


def _train(data: str, folder: Path, name: str, epochs: int) -> tuple[float, float]:
    """Train for `epochs`; return the peak resident memory during training in MiB, and images/s."""
    settings = [*_SETTINGS, f"train.epochs={epochs}"]
    arguments = ["--data", data, "--output", str(folder / "runs"), "--run-name", name]
    attempt = Attempt(
        [*arguments, *(part for setting in settings for part in ("--set", setting))], folder / "cache"
    )
    resident: list[float] = []
    last = IMAGES // 100
    if not attempt.wait_for('"event": "progress"'):
        raise SystemExit(attempt.text())
    while attempt.process.poll() is None and attempt.last_step() < 0.95 * last:
        resident.append(_resident_mib(attempt.process.pid))
        time.sleep(0.2)
    if attempt.end():
        raise SystemExit(attempt.text())
    timings = json.loads((folder / "runs" / name / "timings.json").read_text())["epochs"]
    seconds = sum(epoch["seconds"] for epoch in timings)
    return max(resident), IMAGES / seconds


def _resident_mib(process: int) -> float:
    words = Path(f"/proc/{process}/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _write_photos(folder: Path, count: int = 1200, side: int = 200) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        label = number % 2
        small = rng.integers(0, 200, (25, 25, 3)) + 55 * label
        path = folder / ("cats", "dogs")[label] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(small.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        noisy = np.asarray(image) + rng.normal(0, 12, (side, side, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=90)


def _run(*arguments: str, cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.cli", *arguments],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(
            f"{' '.join(arguments)} failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}"
        )
