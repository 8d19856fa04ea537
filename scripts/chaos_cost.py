"""Throughput with a checkpoint every 30 s, against none within the epoch."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from chaos_places import Attempt, make_images

STEPS = 1200
SETTINGS = [
    "data.image_size=96", "train.epochs=1", "train.global_batch_size=8", "train.ema_decay=0.99",
    "data.validation_fraction=0.05", "model={filters: [48, 96, 192, 384], blocks: [1, 1, 1, 1]}",
]  # fmt: skip
CHECKPOINTS = {"every 30 s": "{every_minutes: 0.5}", "none": "{every_minutes: null}"}
LEAST_RATIO = 0.98


def main(times: int, seed: int) -> list[str]:
    """Measure `times` pairs, each in the other order than the one before."""
    ratios, problems = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_images(folder / "images", per_class=STEPS * 4, side=96)
        for turn in range(times):
            names = list(CHECKPOINTS)[:: -1 if turn % 2 else 1]
            rates = {name: _rate(folder, data, f"{name}-{turn}".replace(" ", "-"), name) for name in names}
            ratios.append(rates["every 30 s"] / rates["none"])
            print({name: f"{rate:.1f} images/s" for name, rate in rates.items()}, f"ratio {ratios[-1]:.4f}")
    median = statistics.median(ratios)
    print(f"ratio: median {median:.4f}, {min(ratios):.4f} to {max(ratios):.4f}, {times} pairs")
    if median < LEAST_RATIO:
        problems.append(f"the ratio {median:.4f} is less than {LEAST_RATIO}")
    return problems


def _rate(folder: Path, data: Path, name: str, kind: str) -> float:
    """Return images/s of a run of one epoch; the checkpoints kept tell if one was within it."""
    settings = [each for setting in SETTINGS for each in ("--set", setting)]
    arguments = ["--data", str(data), "--output", str(folder / "runs"), "--run-name", name, *settings]
    attempt = Attempt([*arguments, "--set", f"train.checkpoint={CHECKPOINTS[kind]}"], folder / "cache")
    if attempt.end():
        raise SystemExit(attempt.text())
    steps = sorted(int(path.stem[5:13]) for path in (folder / "runs" / name).glob("checkpoints/step-*.npz"))
    if any(0 < step < steps[-1] for step in steps) != (kind != "none"):
        raise SystemExit(f"checkpoints of steps {steps} with {kind!r}: the epoch is too short or too long")
    timings = json.loads((folder / "runs" / name / "timings.json").read_text())
    return float(timings["epochs"][0]["images_per_second"])
