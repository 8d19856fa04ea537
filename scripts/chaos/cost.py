"""Throughput cost of a checkpoint: steps after it against steps before and later, in one training.

Comparing whole runs with and without checkpoints is too noisy: a machine's speed varies by a tenth within a
minute.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from chaos.fixtures import make_images
from trainer.data.load import load_dataset
from trainer.data.progress import SilentProgress
from trainer.data.sampler import steps_per_epoch
from trainer.distributed.devices import find_cluster
from trainer.errors import StoppedError
from trainer.spec import RunSpec, load_spec
from trainer.training import AsyncCheckpointer, CallReport, build_learner, train

PERIOD_SECONDS = 12.0
AFTER_SECONDS = 4.0
"""Seconds within which a checkpoint is certainly written."""
INTERVAL_SECONDS = 30.0
MAX_SHARE = 0.02
SETTINGS = [
    "data.image_size=96", "train.epochs=1000", "train.global_batch_size=8", "train.ema_decay=0.99",
    "train.validate_every_epochs=1000", "data.validation_fraction=0.05", "train.steps_per_call=4",
    f"train.checkpoint.every_minutes={PERIOD_SECONDS / 60}",
    "model={filters: [48, 96, 192, 384], blocks: [1, 1, 1, 1]}",
]  # fmt: skip


class _Watch:
    """Training observer that records when each step was done and stops after a fixed time."""

    def __init__(self, seconds: float) -> None:
        self.times: list[float] = []
        self.steps: list[int] = []
        self.seconds = seconds

    def on_call(self, report: CallReport) -> None:
        self.times.append(time.perf_counter())
        self.steps.append(report.step)

    def on_epoch(self, row: object, epochs: int) -> None: ...

    def on_message(self, message: str) -> None: ...

    def is_over(self) -> bool:
        return self.times[-1] - self.times[0] > self.seconds


class _TimedCheckpointer(AsyncCheckpointer):
    """Checkpointer that records when each save began."""

    began: list[float]

    def save(self, *arguments: Any, **options: Any) -> None:
        self.began.append(time.perf_counter())
        super().save(*arguments, **options)


def main(times: int, seed: int) -> list[str]:
    """Measure `times` checkpoints; return the failures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # An epoch is longer than the measurement, because its end writes a checkpoint too.
        data = make_images(folder / "images", per_class=8 * 4000, side=96)
        spec = load_spec(settings=SETTINGS, overrides={"data.source": str(data)})
        watch, began, size = _train(spec, folder, (times + 1.5) * PERIOD_SECONDS)
    costs = [cost for time in began if (cost := _cost(watch, time)) is not None]
    if len(costs) < times:
        return [f"only {len(costs)} of {times} checkpoints were measured"]
    mean, error = np.mean(costs), np.std(costs, ddof=1) / len(costs) ** 0.5
    share = mean / INTERVAL_SECONDS
    rate = 8 * (watch.steps[-1] - watch.steps[0]) / (watch.times[-1] - watch.times[0])
    print(f"{len(costs)} checkpoints of {size / 1e6:.0f} MB at {rate:.0f} images/s")
    print(
        f"one costs {mean:.3f} s of training, standard error {error:.3f}, "
        f"{min(costs):.2f} to {max(costs):.2f}; "
        f"every {INTERVAL_SECONDS:g} s that is {share:.2%} of the throughput"
    )
    return [] if share <= MAX_SHARE else [f"{share:.2%} exceeds {MAX_SHARE:.0%}"]


def _train(spec: RunSpec, folder: Path, seconds: float) -> tuple[_Watch, list[float], int]:
    """Train for `seconds`; return the step times, the save times and the checkpoint size in bytes."""
    dataset = load_dataset(spec.data, folder / "cache", SilentProgress(), lambda rejected: None)
    cluster = find_cluster()
    steps = steps_per_epoch(len(dataset.train.labels), spec.train.global_batch_size)
    learner = build_learner(spec, len(dataset.class_names), steps, cluster)
    watch = _Watch(seconds)
    checkpointer = _TimedCheckpointer(folder / "run" / "checkpoints")
    checkpointer.began = []
    with checkpointer, suppress(StoppedError):
        train(learner, dataset, spec, cluster, checkpointer, watch, dict, watch.is_over)
    sizes = [path.stat().st_size for path in (folder / "run" / "checkpoints").glob("step-*.npz")]
    return watch, checkpointer.began, max(sizes)


def _cost(watch: _Watch, began: float) -> float | None:
    """Return the cost in seconds of the save that `began` then; None if it is too close to either end.

    The speed without a checkpoint is the mean over `AFTER_SECONDS` before the save and as long after it is
    over.
    """
    moments = began + AFTER_SECONDS * np.arange(-1, 3)
    if moments[0] < watch.times[0] + AFTER_SECONDS or moments[-1] > watch.times[-1]:
        return None
    before, during, after = np.diff(np.interp(moments, watch.times, watch.steps))
    return float(AFTER_SECONDS * (1.0 - during / ((before + after) / 2.0)))
