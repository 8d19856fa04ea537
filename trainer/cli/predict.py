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

from trainer.data.layouts.found import IMAGE_SUFFIXES
from trainer.exits import DataError, UsageError
from trainer.export import LoadedModel, load_model

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
