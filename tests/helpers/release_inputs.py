"""Synthetic published runs and predictions as inputs of a release decision."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.evaluate.metrics import Predictions
from trainer.evaluate.prediction_files import write_predictions
from trainer.release.challenge import PredictPair
from trainer.runs.publish import publish
from trainer.storage.store import Store

CLASSES = ("cats", "dogs")


GAIN, LOSS = 0.0, 0.05
"""Defaults of publish.min_gain and publish.max_class_loss."""


def answers(right: np.ndarray, labels: np.ndarray) -> Predictions:
    """Return predictions that are correct where `right` is true."""
    predicted = np.where(right, labels, 1 - labels)
    names = tuple(f"{index}.jpg" for index in range(len(labels)))
    return Predictions("test", names, labels.astype(np.int32), np.eye(2)[predicted], CLASSES)


def measured(
    output: Store, folder: Path, name: str, right: int, metrics: str = "{}", copies: int = 0
) -> None:
    """Publish a run with held-out predictions on 18 images of three classes, the first `right` correct.

    The first `copies` images are copies of training images.
    """
    labels = np.arange(18) % 3
    predicted = np.where(np.arange(18) < right, labels, (labels + 1) % 3)
    names = tuple(map(str, range(18)))
    held_out = Predictions(
        "validation", names, labels.astype(np.int32), np.eye(3)[predicted], ("a", "b", "c")
    )
    finished(output, folder, name, metrics)
    write_predictions(folder / f"{name}.csv", [replace(held_out, split="train"), held_out])
    output.write(f"{name}/predictions.csv", (folder / f"{name}.csv").read_bytes())
    pairs = [
        [{"split": split, "label": "a", "name": names[row]} for split in ("train", "validation")]
        for row in range(copies)
    ]
    leak = {"duplicates_across_splits": {"count": copies, "images": pairs}}
    output.write(f"{name}/dataset.json", json.dumps(leak).encode())


def finished(output: Store, folder: Path, name: str, metrics: str = "{}") -> None:
    """Publish a run with one file, metrics.json."""
    (run := folder / name).mkdir(parents=True, exist_ok=True)
    (run / "metrics.json").write_text(metrics)
    output.below(name).write("metrics.json", metrics.encode())
    publish(output, name, run)


def between(good: dict[str, float]) -> PredictPair:
    """Return predictions for pairs of models whose accuracies are in `good`, on 1,000 test images."""

    def ask(champion: str, challenger: str) -> tuple[Predictions, Predictions, str]:
        labels = np.arange(1000) % 2
        both = [answers(np.arange(1000) < 1000 * good[name], labels) for name in (champion, challenger)]
        return both[0], both[1], "test images"

    return ask
