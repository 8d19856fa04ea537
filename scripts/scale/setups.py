"""Setups of the scaling tests (processes and devices), and comparison of their runs."""

from __future__ import annotations

import csv
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from chaos.fixtures import Attempt
from helpers.free_ports import addresses
from PIL import Image

HERE = Path(__file__).resolve().parent
STEPS_PER_EPOCH = 9
TRAIN_IMAGES = (STEPS_PER_EPOCH - 1) * 40 + 3
"""The last batch has three images, so one of four replicas has none."""
EPOCHS = 23
_TIMEOUT_SECONDS = 120.0
"""Timeout in seconds after a signal; then all processes are killed."""
TOLERANCE = 1e-4
"""Relative tolerance of losses and metrics."""
RATE = 0.0005
"""Low enough that only arithmetic is compared. Occasionally a rounding error activates a ReLU on one number
of replicas and not on another. That changes the loss by 1e-6 at first and, at a rate of 0.01, by 3e-3 after
200 steps.
"""
SETTINGS = [
    "train.global_batch_size=40", "train.precision=float32", "train.ema_decay=0.9",
    "train.label_smoothing=0.1", "train.log_interval_seconds=0.1", "train.max_stalled_starts=1000",
    "train.meet_seconds=120", f"train.epochs={EPOCHS}",
    f"optimizer={{name: sgd, learning_rate: {RATE}, momentum: 0.9, clip_norm: 1.0}}",
]  # fmt: skip
FROM_SCRATCH = [
    "data.image_size=48", "model={family: residual, stem_filters: 16, filters: [16, 32], blocks: [1, 1]}",
    "model={dropout: 0.3, stochastic_depth: 0.2}",
]  # fmt: skip
PRETRAINED = [
    "data.image_size=32", "model={family: pretrained, backbone: efficientnet-lite0, dropout: 0.3}",
    "train.finetune={probe: steps, frozen_epochs: 3, last_stage_epochs: 3}",
    "train.epochs=9",
]  # fmt: skip
"""Fine-tuning phases: head on cached features, last stage, all weights; frozen batch-norm statistics.

Trained statistics cannot be compared: at 32 px the last maps have one pixel, so the last batch
normalizes over three values, which amplifies rounding errors to 0.2 of the loss.
"""
CLASSES = ("red", "green", "blue")


@dataclass(frozen=True)
class Setup:
    """Number of processes, and of devices per process."""

    processes: int
    devices: int
    kind: str = "cpu"
    xla: bool = False

    @property
    def replicas(self) -> int:
        return self.processes * self.devices

    def __str__(self) -> str:
        device = "GPU" if self.kind == "gpu" else "device"
        suffix = f" x {self.devices} {device}s" if self.devices > 1 else ""
        if self.processes == 1:
            return f"{self.devices} {device}{'s' * (self.devices > 1)}{' with XLA' * self.xla}"
        return f"{self.processes} processes{suffix}"


SETUPS = (Setup(1, 1), Setup(1, 1, xla=True), Setup(1, 2), Setup(1, 4), Setup(2, 1), Setup(4, 1), Setup(2, 2))


def choose_setups(gpus: int) -> tuple[Setup, ...]:
    """Return the setups to compare: CPUs and processes, or one CPU and 1, 2, 4... GPUs of a host."""
    if not gpus:
        return SETUPS
    counts = [count for count in (1, 2, 4, 8, 16) if count <= gpus]
    return (Setup(1, 1), Setup(1, 1, "gpu", xla=True), *(Setup(1, count, "gpu") for count in counts))


def make_overlapping(folder: Path) -> Path:
    """Write images of three overlapping classes, so that no loss approaches zero; return the folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN_IMAGES), ("validation", 120)):
        for number in range(count):
            label = number % len(CLASSES)
            shade = rng.normal(110, 20, 3) + 30 * (np.arange(3) == label)
            pixels = np.clip(rng.normal(shade, 40, (48, 48, 3)), 0, 255)
            path = folder / split / CLASSES[label] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


class Team:
    """Processes of one start of a run."""

    def __init__(self, setup: Setup, folder: Path, data: Path, name: str, *settings: str) -> None:
        """Start the run `folder`/runs/`name`, whose processes write notes to `folder`/`name`-INDEX.jsonl."""
        devices = [f"train.devices={setup.kind}:{setup.devices}", f"train.xla={setup.xla}".lower()]
        all_settings = [*SETTINGS, *settings, *devices]
        flags = ["--data", str(data), "--output", str(folder / "runs"), "--run-name", name]
        flags += [part for setting in all_settings for part in ("--set", setting)]
        self.setup = setup
        self.notes = [folder / f"{name}-{index}.jsonl" for index in range(setup.processes)]
        self.processes = [
            Attempt(flags, folder / f"cache-{index}", [str(HERE / "worker.py"), str(note)], environment)
            for index, (note, environment) in enumerate(
                zip(self.notes, environments(setup.processes), strict=True)
            )
        ]

    def end(self) -> list[int]:
        """Wait for all processes to exit; return their exit codes."""
        return [attempt.end() for attempt in self.processes]

    def signal(self, number: signal.Signals, index: int) -> list[float]:
        """Send `number` to one process; return the seconds until each process exited."""
        began, seconds = time.monotonic(), [-1.0] * len(self.processes)
        self.processes[index].process.send_signal(number)
        while min(seconds) < 0:
            if time.monotonic() - began > _TIMEOUT_SECONDS:
                for attempt in self.processes:
                    attempt.process.kill()
            for other, attempt in enumerate(self.processes):
                if seconds[other] < 0 and attempt.process.poll() is not None:
                    seconds[other] = time.monotonic() - began
            time.sleep(0.01)
        return seconds

    def text(self) -> str:
        """Return the output of all processes."""
        return "\n".join(f"--- {index}\n{attempt.text()}" for index, attempt in enumerate(self.processes))


def environments(count: int) -> list[dict[str, str]]:
    """Return the environment variables (TF_CONFIG) of each of `count` processes on this machine."""
    if count == 1:
        return [{}]
    hosts = addresses(count)
    tasks = [{"type": "worker", "index": index} for index in range(count)]
    return [{"TF_CONFIG": json.dumps({"cluster": {"worker": hosts}, "task": task})} for task in tasks]


@dataclass(frozen=True)
class Outcome:
    """Results of a run."""

    losses: dict[int, float]
    """Mean loss over the global batch by step, from 0. For a repeated step, the last value."""
    metrics: dict[str, float]
    predicted: list[str]
    variables: dict[str, np.ndarray]

    def compare(self, expected: Outcome) -> tuple[str, list[str]]:
        """Return a description of the difference to `expected`, and what exceeds the tolerance."""
        losses, step = max(
            (_relative(self.losses.get(index, np.nan), value), index)
            for index, value in expected.losses.items()
        )
        metrics, metric = max(
            (_relative(self.metrics.get(name, np.nan), value), name)
            for name, value in expected.metrics.items()
        )
        classes = sum(a != b for a, b in zip(self.predicted, expected.predicted, strict=True))
        variables = max(
            float(np.abs(self.variables[name] - value).max() / max(np.abs(value).max(), 1e-30))
            for name, value in expected.variables.items()
        )
        text = (
            f"loss {losses:.1e} at step {step + 1} of {len(expected.losses)}, metrics {metrics:.1e} "
            f"({metric}), {classes} different classes of {len(self.predicted)}, variables {variables:.1e}"
        )
        differences = {"loss curve": losses, "metrics": metrics}
        missed = [f"{name} {value:.1e}" for name, value in differences.items() if not value <= TOLERANCE]
        return text, missed + [f"{classes} different classes"] * bool(classes)


def outcome(folder: Path, name: str, notes: Path) -> Outcome:
    """Return the results of the finished run `folder`/runs/`name`; `notes` is the file of its chief."""
    run = folder / "runs" / name
    rows = [json.loads(line) for line in notes.read_text().splitlines()]
    losses = {row["step"]: row["loss"] / row["images"] for row in rows if "step" in row}
    with (run / "predictions.csv").open(newline="") as file:
        predicted = [row["predicted"] for row in csv.DictReader(file)]
    metrics = json.loads((run / "metrics.json").read_text())
    with np.load(max((run / "checkpoints").glob("step-*.npz"))) as file:
        variables = {key: file[key].astype(np.float64) for key in file.files if key != "record.json"}
    return Outcome(losses, metrics, predicted, variables)


def copies(notes: list[Path]) -> tuple[int, list[str]]:
    """Return the number of copies of each variable and the names of variables with differing copies."""
    ends = [json.loads(note.read_text().splitlines()[-1])["digests"] for note in notes]
    by_name = {name: [digest for end in ends for digest in end[name]] for name in ends[0]}
    counts = {len(digests) for digests in by_name.values()}
    differing = [name for name, digests in by_name.items() if len(set(digests)) > 1]
    return max(counts), differing + ["different numbers of copies"] * (len(counts) > 1)


def _relative(value: float, expected: float) -> float:
    difference = abs(value - expected) / max(abs(expected), 1e-9)
    return float("inf") if np.isnan(difference) and not np.isnan(expected) else float(difference)
