"""Training run of a few seconds: dark and light images, and a small network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.dataset import Dataset, Split
from trainer.data.items import Item
from trainer.data.progress import SilentProgress
from trainer.data.sampler import steps_per_epoch
from trainer.distributed.devices import Cluster, find_cluster
from trainer.evaluate.evaluator import Evaluator
from trainer.spec import RunSpec
from trainer.training import AsyncCheckpointer, CallReport, Learner, TrainResult, build_learner, train
from trainer.training.features import build_features

SMALL = [
    "data.image_size=16",
    "model={family: residual, stem_filters: 4, filters: [8], blocks: [1], dropout: 0.3}",
    "train.epochs=3",
    "train.global_batch_size=8",
    "train.deterministic=true",
]


class Pixels:
    """Pixels in memory with the interface of the cache."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape

    def gather(self, indices: np.ndarray) -> np.ndarray:
        return self.array[indices]

    def cache(self, indices: np.ndarray) -> None:
        """Do nothing: all images are in memory."""

    def prefetch(self, *passes: np.ndarray) -> None:
        """Do nothing: all images are in memory."""


class Recorder:
    """Observer that records its calls."""

    def __init__(self) -> None:
        self.calls: list[CallReport] = []
        self.rows: list[Mapping[str, Any]] = []
        self.messages: list[str] = []

    def on_call(self, report: CallReport) -> None:
        self.calls.append(report)

    def on_epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        self.rows.append(row)

    def on_message(self, message: str) -> None:
        self.messages.append(message)


def split(name: str, count: int, seed: int) -> Split:
    """Return a split of light and dark images with noise."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int32)
    images = rng.integers(0, 100, (count, 16, 16, 3)) + 120 * labels[:, None, None, None]
    items = tuple(
        Item(f"{name}/{index}.png", "dark" if label == 0 else "light", name, Path("nowhere"))
        for index, label in enumerate(labels)
    )
    return Split(name, items, labels, Pixels(images.astype(np.uint8)), np.arange(count))


def dark_and_light() -> Dataset:
    """Return a dataset of 44 training images and 12 held-out images."""
    splits = {"train": split("train", 44, 0), "validation": split("validation", 12, 1)}
    return Dataset(("dark", "light"), splits, rejected=(), summary={}, digest="0", warnings=())


def learner_for(spec: RunSpec, dataset: Dataset) -> Learner:
    steps = steps_per_epoch(len(dataset.train.labels), spec.train.global_batch_size)
    return build_learner(spec, 2, steps, find_cluster())


def do_train(
    spec: RunSpec,
    dataset: Dataset,
    folder: Path,
    recorder: Recorder | None = None,
    stop_at: int | None = None,
    learner: Learner | None = None,
    cluster: Cluster | None = None,
) -> tuple[Learner, TrainResult]:
    recorder = recorder or Recorder()
    learner = learner or learner_for(spec, dataset)
    cluster = cluster or find_cluster()
    model, progress = learner.inference_model, SilentProgress()
    features = build_features(spec, model, dataset, cluster, folder / "cache", progress)
    evaluator = Evaluator(model, features=features)

    def is_stopped() -> bool:
        return stop_at is not None and bool(recorder.calls) and recorder.calls[-1].step >= stop_at

    with AsyncCheckpointer(folder / "checkpoints") as checkpointer:
        result = train(
            learner, dataset, spec, cluster, checkpointer, recorder,
            lambda: evaluator.loss_and_accuracy(dataset.held_out), is_stopped, features,
        )  # fmt: skip
    return learner, result


def values(learner: Learner) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in learner.variables().items()}


def untimed(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    timings = ("images_per_second", "wait_share", "seconds")
    return [{key: value for key, value in row.items() if key not in timings} for row in history]
