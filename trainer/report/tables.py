"""Rows of the tables in a report.

The functions return short lists of plain values; the template only lays them out.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.report.drift import ClassCount
from trainer.report.history import read_series
from trainer.report.inputs import ReportInputs
from trainer.report.names import format_count, format_duration
from trainer.spec import sides_of

_OVERALL = (
    ("accuracy", "accuracy"),
    ("macro_precision", "precision (macro average)"),
    ("macro_recall", "recall (macro average)"),
    ("macro_f1", "F1 (macro average)"),
    ("roc_auc", "ROC AUC"),
    ("log_loss", "log loss"),
    ("brier", "Brier score"),
    ("calibration_error", "calibration error"),
    ("calibration_error_cross_fitted", "calibration error (cross-fitted temperature)"),
    ("calibration_error_uncalibrated", "calibration error without temperature"),
    ("coverage", "coverage (share of accepted images)"),
    ("selective_accuracy", "accuracy on the accepted images"),
)


@dataclass(frozen=True)
class ClassRow:
    """Metrics of one class on the held-out split; None where it has no images."""

    number: int
    """From 1, in the order of the confusion matrix."""
    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Confusion:
    """One kind of mistake: images of one class that are predicted as another."""

    label: str
    predicted: str
    count: int
    share: float
    """Share of the images of the class."""


def class_rows(metrics: Mapping[str, float], split: str, class_names: Sequence[str]) -> list[ClassRow]:
    """Return one row per class, in the order of `class_names`."""
    return [
        ClassRow(
            number=number,
            name=name,
            precision=metrics.get(f"{split}/precision/{name}"),
            recall=metrics.get(f"{split}/recall/{name}"),
            f1=metrics.get(f"{split}/f1/{name}"),
            support=int(metrics[f"{split}/support/{name}"]),
        )
        for number, name in enumerate(class_names, start=1)
    ]


def weakest_first(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """Return `rows` by recall, lowest first; classes without images are last."""
    return sorted(rows, key=lambda row: 2.0 if row.recall is None else row.recall)


def top_confusions(matrix: npt.NDArray[np.int64], class_names: Sequence[str], count: int) -> list[Confusion]:
    """Return the `count` most frequent mistakes in `matrix`, int64 [C, C] with the truth in rows."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    totals = matrix.sum(axis=1)
    cells = [divmod(int(index), len(matrix)) for index in order]
    return [
        Confusion(
            class_names[row], class_names[column], int(wrong[row, column]), wrong[row, column] / totals[row]
        )
        for row, column in cells
        if wrong[row, column] > 0
    ]


def overall_rows(
    metrics: Mapping[str, float], splits: Sequence[str], names: Sequence[tuple[str, str]] = _OVERALL
) -> list[tuple[str, list[float | None]]]:
    """Return (label, value per split) for each metric that some split has.

    names: (metric, label) pairs.
    """
    rows = [(label, [metrics.get(f"{split}/{name}") for split in splits]) for name, label in names]
    return [(label, values) for label, values in rows if any(value is not None for value in values)]


def split_counts(dataset: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return the number of images by split and class."""
    return {name: dict(split["classes"]) for name, split in dataset.get("splits", {}).items()}


def duplicate_names(dataset: Mapping[str, Any], count: int) -> list[list[str]]:
    """Return up to `count` groups of identical images across splits, as `split: name` texts."""
    groups = dataset.get("duplicates_across_splits", {}).get("images", [])
    return [[f"{item['split']}: {item['name']}" for item in group] for group in groups[:count]]


def most_changed(rows: Sequence[ClassCount], count: int) -> list[ClassCount]:
    """Return the `count` classes whose number of images changed the most, in their original order."""
    chosen = sorted(rows, key=lambda row: -abs(row.now - row.before))[:count]
    return [row for row in rows if row in chosen]


def facts(inputs: ReportInputs, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of a run as (name, text) pairs, without unknown ones."""
    environment = inputs.environment
    rows = [
        ("Recipe", str(settings.get("recipe") or "none")),
        ("Data", _data_text(inputs)),
        ("Model", model_text(settings)),
        ("Training", _training_text(inputs, settings)),
        ("Optimizer", _optimizer_text(settings, environment)),
        ("Augmentation", augment_text(settings)),
        ("Started from", str(environment.get("started_from") or "")),
        ("Weights", _weights_text(environment)),
        ("Devices", str(environment.get("devices") or "")),
        ("Precision", str(environment.get("precision") or "")),
        ("Seed", str(settings.get("seed", environment.get("seed", "")))),
        ("Start time", str(environment.get("started") or "")),
        ("Versions", _versions_text(environment)),
        ("Commit", str(environment.get("git_commit") or "")),
        ("Host", ", ".join(str(environment[key]) for key in ("host", "system") if environment.get(key))),
    ]
    return [(name, text) for name, text in rows if text]


def _weights_text(environment: Mapping[str, Any]) -> str:
    weights = environment.get("weights") or {}
    if not weights:
        return ""
    licence = weights.get("licence") or "licence unknown"
    return f"{weights.get('origin')}, {licence}, sha256 {weights.get('sha256')}"


def command_text(environment: Mapping[str, Any]) -> str:
    """Return the command line, quoted for a shell; empty if unknown."""
    command = environment.get("command") or []
    return command if isinstance(command, str) else shlex.join(map(str, command))


def model_text(settings: Mapping[str, Any]) -> str:
    """Return a short description of the network: `plain; filters 16, 32, 64; 150 x 150 pixels`."""
    model = settings.get("model", {})
    lists = [(key, model.get(key)) for key in ("filters", "blocks", "dense_units")]
    parts = [str(model.get("family", ""))]
    parts += [f"{key.replace('_', ' ')} {', '.join(map(str, value))}" for key, value in lists if value]
    if model.get("dropout"):
        parts.append(f"dropout {model['dropout']:g}")
    return "; ".join(part for part in [*parts, _pixels_text(settings.get("data", {}))] if part)


def _pixels_text(data: Mapping[str, Any]) -> str:
    """Return the image size as `150 x 150 pixels`, with `, grey` or `, RGBA`; empty if unknown."""
    if not data.get("image_size"):
        return ""
    height, width = sides_of(data["image_size"])
    kind = {1: ", grey", 4: ", RGBA"}.get(data.get("channels", 3), "")
    return f"{height} x {width} pixels{kind}"


def _data_text(inputs: ReportInputs) -> str:
    source, digest = inputs.dataset.get("source", ""), str(inputs.dataset.get("digest", ""))
    short = f"content {digest.partition(':')[2][:12]}" if digest else ""
    return ", ".join(part for part in (str(source), str(inputs.dataset.get("layout", "")), short) if part)


def _training_text(inputs: ReportInputs, settings: Mapping[str, Any]) -> str:
    epochs, batch = len(inputs.history), inputs.environment.get("global_batch_size")
    batch = batch or settings.get("train", {}).get("global_batch_size")
    planned = settings.get("train", {}).get("epochs", epochs)
    parts = [format_count(epochs, "epoch") if epochs >= planned else f"{epochs:,} of {planned:,} epochs"]
    parts += [f"batch size {batch}"] if batch else []
    parts.append(f"in {format_duration(inputs.train_seconds)}")
    rates = read_series(inputs.history, "images_per_second").values
    if len(rates):
        parts.append(f"{np.median(rates):,.0f} images/s")
    waits = read_series(inputs.history, "wait_share").values
    if len(waits):
        parts.append(f"{np.mean(waits):.1%} of the time waiting for data")
    return ", ".join(parts) + (f"; ended early: {inputs.ended}" if inputs.ended else "")


def _optimizer_text(settings: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    optimizer = dict(settings.get("optimizer", {}))
    if environment.get("learning_rate"):
        optimizer["learning_rate"] = environment["learning_rate"]  # scaled by train.scale_batch
    numbers = ("learning_rate", "weight_decay", "momentum", "clip_norm", "warmup_epochs")
    parts = [f"{key.replace('_', ' ')} {optimizer[key]:g}" for key in numbers if optimizer.get(key)]
    named = [str(optimizer[key]) for key in ("name", "schedule") if optimizer.get(key)]
    return ", ".join([*named[:1], *parts, *named[1:]])


def augment_text(settings: Mapping[str, Any]) -> str:
    """Return the active augmentations, `none` if there are none; empty if unknown."""
    augment = settings.get("augment")
    if not isinstance(augment, Mapping):
        return ""
    active = [(key, value) for key, value in augment.items() if value not in (None, 0, 0.0, "none")]
    texts = [
        key if isinstance(value, Mapping) else f"{key.replace('_', ' ')} {value}" for key, value in active
    ]
    return ", ".join(texts) or "none"


def _versions_text(environment: Mapping[str, Any]) -> str:
    versions = {"trainer": environment.get("trainer_version"), "Python": environment.get("python")}
    versions |= environment.get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)
