"""`trainer predict` and `trainer evaluate`: a trained model at work.

In: a run or a model, and pictures. Out: a table or JSON on standard output, and one line on
standard error for each picture that can't be used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import tensorflow as tf

from trainer.data.dataset import Split
from trainer.data.labelled import load_labelled
from trainer.data.layouts.found import IMAGE_SUFFIXES
from trainer.data.progress import SilentProgress
from trainer.exits import DataError, UsageError
from trainer.export import LoadedModel, load_model
from trainer.metrics import Predictions, compute_metrics
from trainer.spec import DataSpec

_BATCH = 32


def predict_command(model_path: Path, images: tuple[Path, ...], as_json: bool) -> None:
    """Print what `model_path` says of each picture; raise DataError at the end if one was unusable."""
    model = load_model(model_path)
    paths = list(_pictures(images))
    if not paths:
        raise DataError(f"There are no pictures here. Received: {', '.join(map(str, images))}")
    width = max(len(str(path)) for path in paths)
    unusable = 0
    for start in range(0, len(paths), _BATCH):
        for path, answer in _answers(model, paths[start : start + _BATCH]):
            if isinstance(answer, str):
                unusable += 1
                click.echo(f"{path}: {answer}", err=True)
            else:
                click.echo(_as_json(path, answer, model) if as_json else _as_row(path, answer, model, width))
    if unusable:
        raise DataError(f"{unusable} of {len(paths)} pictures can't be used; the lines above say why.")


def _pictures(paths: tuple[Path, ...]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.is_file() and each.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():
            yield path
        else:
            raise UsageError(f"There is no such picture or folder. Received: {path}")


def _answers(model: LoadedModel, paths: list[Path]) -> Iterator[tuple[Path, np.ndarray | str]]:
    """Yield each path with its probabilities, or with why it can't be used."""
    encoded: dict[Path, bytes | str] = {path: _read(path) for path in paths}
    good = [path for path, data in encoded.items() if isinstance(data, bytes)]
    answers: dict[Path, np.ndarray | str] = {path: data for path, data in encoded.items() if isinstance(data, str)}
    try:
        answers |= dict(zip(good, model.classify([encoded[path] for path in good]), strict=True)) if good else {}  # type: ignore[misc]
    except tf.errors.InvalidArgumentError:
        # One damaged picture fails the whole batch: find it.
        answers |= {path: _answer(model, encoded[path]) for path in good}  # type: ignore[arg-type]
    for path in paths:
        yield path, answers[path]


def _answer(model: LoadedModel, data: bytes) -> np.ndarray | str:
    try:
        return np.asarray(model.classify([data])[0])
    except tf.errors.InvalidArgumentError:
        return "not an image, or a damaged one" if data else "an empty file"


def _read(path: Path) -> bytes | str:
    try:
        return path.read_bytes()
    except OSError as error:
        return f"can't be read: {error.strerror}"


def _as_row(path: Path, probabilities: np.ndarray, model: LoadedModel, width: int) -> str:
    best = int(np.argmax(probabilities))
    return f"{path!s:<{width}}  {model.class_names[best]:<16} {probabilities[best]:.3f}"


def _as_json(path: Path, probabilities: np.ndarray, model: LoadedModel) -> str:
    best = int(np.argmax(probabilities))
    return json.dumps(
        {
            "path": str(path),
            "label": model.class_names[best],
            "probability": float(probabilities[best]),
            "probabilities": {
                name: float(value) for name, value in zip(model.class_names, probabilities, strict=True)
            },
        },
        ensure_ascii=False,
    )


def evaluate_command(model_path: Path, data: str, cache_dir: Path, as_json: bool) -> None:
    """Print how good `model_path` is on every split of `data`."""
    model = load_model(model_path)
    spec = DataSpec.model_validate(
        {
            "source": data,
            "image_size": model.image_size,
            "resize": model.resize,
            "interpolation": model.interpolation,
        }
    )
    splits, rejected = load_labelled(spec, model.class_names, cache_dir, SilentProgress())
    for each in rejected:
        click.echo(f"left out: {each.name}: {each.reason}", err=True)
    metrics = {name: compute_metrics(_predictions(model, split)) for name, split in splits.items()}
    if as_json:
        flat = {f"{name}/{metric}": value for name, values in metrics.items() for metric, value in values.items()}
        click.echo(json.dumps(flat, indent=2, ensure_ascii=False))
        return
    for name, values in metrics.items():
        click.echo(_summary(name, values, model.class_names))


def _predictions(model: LoadedModel, split: Split) -> Predictions:
    starts = range(0, len(split.labels), _BATCH)
    rows = [np.arange(start, min(start + _BATCH, len(split.labels))) for start in starts]
    probabilities = np.concatenate([model.classify_pixels(split.pixels.take(each)) for each in rows])
    # The model answers in float32; metrics want rows that sum to one in float64.
    wide = probabilities.astype(np.float64)
    return Predictions(
        split.name,
        tuple(item.name for item in split.items),
        split.labels,
        wide / wide.sum(axis=1, keepdims=True),
        model.class_names,
    )


def _summary(name: str, values: dict[str, float], class_names: tuple[str, ...]) -> str:
    lines = [
        f"{name}: {values['count']:.0f} images",
        f"  accuracy   {values['accuracy']:.3f} (95% interval {values['accuracy_low']:.3f} to {values['accuracy_high']:.3f})",
        f"  log loss   {values['log_loss']:.3f}   calibration error {values['calibration_error']:.3f}",
    ]
    for each in class_names:
        scores = [values.get(f"{metric}/{each}", float("nan")) for metric in ("precision", "recall", "f1")]
        lines.append("  {:<20} precision {:.3f}  recall {:.3f}  f1 {:.3f}".format(each[:20], *scores))
    return "\n".join(lines)
