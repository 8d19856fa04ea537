"""Synthetic runs as inputs of the report."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.compare.runs import Run
from trainer.data.items import Rejection
from trainer.evaluate.metrics import Predictions, compute_metrics
from trainer.report.inputs import ReportInputs
from trainer.spec import dump_spec, load_spec

Pixels = npt.NDArray[np.uint8]


def make_predictions(
    split: str, class_names: tuple[str, ...], per_class: int, skill: float, seed: int = 0
) -> Predictions:
    """Return predictions that improve with `skill`; 0 is random."""
    rng = np.random.default_rng(seed)
    classes = len(class_names)
    labels = np.repeat(np.arange(classes, dtype=np.int32), per_class)
    logits = rng.normal(size=(len(labels), classes)) * 1.7
    logits[np.arange(len(labels)), labels] += skill
    rows = np.exp(logits - logits.max(axis=1, keepdims=True))
    rows /= rows.sum(axis=1, keepdims=True)
    names = tuple(
        f"{split}/{class_names[label]}/{number:05}.jpg" for number, label in enumerate(labels.tolist())
    )
    return Predictions(split, names, labels, rows, class_names)


def run_of(predictions: Predictions, name: str, digest: str = "sha256:1") -> Run:
    """Return a run with `predictions` on its held-out split."""
    metrics = {f"validation/{key}": value for key, value in compute_metrics(predictions).items()}
    return Run(name, name, metrics, "validation", predictions, dataset={"digest": digest})


def make_history(
    epochs: int, held_out: str, last: tuple[float, float], overfit: float = 0.0, every: int = 1, seed: int = 0
) -> list[dict[str, Any]]:
    """Return curves that converge to accuracies `last` (train, held-out); `overfit` adds held-out loss."""
    rng = np.random.default_rng(seed)
    rows = []
    for epoch in range(1, epochs + 1):
        share = 1 - math.exp(-4 * epoch / epochs)
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": epoch * 62,
            "learning_rate": 0.001 * (0.5 + 0.5 * math.cos(math.pi * epoch / epochs)),
            "train/loss": 0.69 * (1 - share) + 0.1 + rng.normal() * 0.004,
            "train/accuracy": 0.5 + (last[0] - 0.5) * share + rng.normal() * 0.003,
            "images_per_second": 141.0,
            "wait_share": 0.004,
        }
        if epoch % every == 0:
            rise = overfit * max(0.0, epoch / epochs - 0.4) ** 1.5
            row[f"{held_out}/loss"] = 0.69 * (1 - share) + 0.2 + rise + rng.normal() * 0.012
            row[f"{held_out}/accuracy"] = 0.5 + (last[1] - 0.5) * share + rng.normal() * 0.007
        rows.append(row | {"seconds": 16.2})
    return rows


def make_inputs(
    class_names: tuple[str, ...] = ("cats", "dogs"),
    per_class: int = 50,
    skill: float = 4.0,
    held_out: str = "validation",
    **changes: Any,
) -> ReportInputs:
    """Return the inputs of a successful run; `changes` replace single fields."""
    train = make_predictions("train", class_names, 2 * per_class, skill + 0.5, seed=1)
    held = make_predictions(held_out, class_names, per_class, skill, seed=2)
    predictions = {"train": train, held_out: held}
    inputs = ReportInputs(
        title="cats-vs-dogs-augmented-20261123-191500-3fa9c1",
        spec_yaml=dump_spec(load_spec(settings=["model.dropout=0.3", "augment.flip=horizontal"])),
        environment=make_environment(),
        dataset=make_dataset(predictions),
        rejected=(Rejection("train/cats/c 17.jpg", "truncated: ends after 1,024 bytes"),),
        history=make_history(12, held_out, (0.957, 0.924)),
        predictions=predictions,
        metrics=make_metrics(predictions),
        held_out=held_out,
        pictures=make_pixels,
        train_seconds=1600.4,
    )
    return dataclasses.replace(inputs, **changes)


def make_metrics(predictions: dict[str, Predictions]) -> dict[str, float]:
    """Return the metrics of several splits, named split/metric."""
    return {
        f"{split}/{name}": value
        for split, each in predictions.items()
        for name, value in compute_metrics(each).items()
    }


def make_environment() -> dict[str, Any]:
    """Return the content of environment.json."""
    return {
        "command": ["trainer", "train", "--recipe", "cats-vs-dogs-augmented", "--data", "my pictures.zip"],
        "trainer_version": "0.1.0",
        "git_commit": "91ab3e0c5b0f4f1d8a6f0b8e0a2c7d9e4f6a1b3c",
        "python": "3.11.2",
        "packages": {"tensorflow-cpu": "2.21.0", "keras": "3.15.1", "numpy": "2.4.6"},
        "host": "worker-0",
        "system": "Linux-6.1.0-x86_64-with-glibc2.36",
        "devices": "cpu: AMD EPYC, 2 cores, bfloat16 (avx512_bf16)",
        "precision": "bfloat16",
        "seed": 0,
        "started": "2026-11-23T19:15:00+00:00",
    }


def make_dataset(predictions: dict[str, Predictions]) -> dict[str, Any]:
    """Return the content of dataset.json."""
    splits = {}
    for split, each in predictions.items():
        counts = np.bincount(each.labels, minlength=len(each.class_names)).tolist()
        splits[split] = {
            "images": len(each.labels),
            "classes": dict(zip(each.class_names, counts, strict=True)),
        }
    pair = [
        {"split": "train", "label": "cats", "name": "train/cats/00001.jpg"},
        {"split": "validation", "label": "cats", "name": "validation/cats/00002.jpg"},
    ]
    return {
        "source": "cats_and_dogs_filtered.zip",
        "layout": "folders",
        "splits": splits,
        "duplicates_across_splits": {"count": 1, "images": [pair]},
        "digest": "sha256:98b08edac0ffee0123456789",
        "warnings": ["1 image appears in train and validation; see dataset.json"],
    }


def make_pixels(split: str, indices: npt.NDArray[np.int64]) -> Pixels:
    """Return 96 x 96 stripes as uint8; the pattern depends on the index modulo 7."""
    ramp = np.arange(96, dtype=np.int64)
    return np.stack(
        [((ramp[:, None, None] * [1, 2, 3] + ramp[None, :, None] * (i % 7)) % 256) for i in indices]
    ).astype(np.uint8)
