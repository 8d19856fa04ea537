"""Predictions of several finished models for the same images, aligned to one order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Split
from trainer.data.items import all_normalized, normalized, numbers_of, renumber_labels
from trainer.data.load import load_dataset, load_labelled
from trainer.data.progress import Progress
from trainer.data.statistics import was_trained_on
from trainer.errors import DataError, UsageError
from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.evaluate.metrics import AnyPredictions, Predictions
from trainer.evaluate.predict import predict_split
from trainer.export import LoadedModel
from trainer.report.names import format_count
from trainer.sanitize import shown_address
from trainer.spec import PIXEL_SETTINGS, DataSpec, PixelFormat
from trainer.storage.store import without_scheme

_SPLITS = ("test", "validation", "all", "train")
"""Splits of the test data in order of preference; the first one that exists is used."""


def predict_same_images(
    models: Sequence[LoadedModel],
    data: DataSpec,
    test_data: str | None,
    cache_dir: Path,
    progress: Progress,
    trained: Sequence[Mapping[str, Any]] = (),
) -> tuple[list[AnyPredictions], str]:
    """Return the predictions of all `models` for the same images, and a description of these images.

    The images are those of `test_data`, or else the held-out split of `data`, on which the newest run was
    selected. Images that a model was trained on are removed, as far as `trained` (the images.json of each
    model's run) lists them. Raises UsageError for models of other classes, DataError for unusable images.
    """
    _require_same_classes(models)
    decoded: dict[tuple[PixelFormat, tuple[str, ...]], Split] = {}
    for model in models:
        if _decoding_key(model) not in decoded:
            decoded[_decoding_key(model)] = _split(model, data, test_data, cache_dir, progress)
    splits = [decoded[_decoding_key(model)] for model in models]
    images = f"{splits[0].name} images of {shown_address(test_data or data.source)}"
    unseen, without = _unseen_images(splits[0], trained, images)
    predictions = [predict_split(model, split) for model, split in zip(models, splits, strict=True)]
    first = predictions[0]
    return [in_order(other, first).select(unseen) for other in predictions], f"{images}{without}"


def _unseen_images(
    split: Split, trained: Sequence[Mapping[str, Any]], description: str
) -> tuple[NDArray[np.int64], str]:
    """Return the indices of images no model was trained on, and a note on the rest. Raises DataError."""
    # As data grow, a few images move from training to validation; test data may contain copies.
    seen = [was_trained_on(split.contents, images) for images in trained]
    if not seen or len(split.contents) != len(split.items):
        return np.arange(len(split.items)), ""
    is_seen = np.any(seen, axis=0)
    if is_seen.all():
        raise DataError(
            "A model was trained on all of the images, so they cannot decide a release.",
            "Set publish.test_data to other images.",
            received=description,
        )
    count = int(is_seen.sum())
    without = f", without {format_count(count, 'image')} that a model was trained on" if count else ""
    return np.flatnonzero(~is_seen), without


def _decoding_key(model: LoadedModel) -> tuple[PixelFormat, tuple[str, ...]]:
    """Return the model's properties that determine how images are decoded and labels are numbered."""
    return model.data.pixel_format, all_normalized(model.class_names)


def _split(
    model: LoadedModel, data: DataSpec, test_data: str | None, cache_dir: Path, progress: Progress
) -> Split:
    settings: dict[str, Any] = {key: getattr(model.data, key) for key in (*PIXEL_SETTINGS, "labels")}
    if test_data is not None:
        settings |= {"held_out": "auto"}  # the model may have been trained without them
    own_data = DataSpec.model_validate(data.model_dump() | settings)
    if test_data is None or _normalized_location(test_data) == _normalized_location(data.source):
        dataset = load_dataset(own_data, cache_dir, progress, lambda rejected: None)
        _require_known(dataset.class_names, model.class_names)
        split = dataset.held_out if test_data is None else dataset.splits.get("test", dataset.held_out)
        return replace(split, labels=translated(split.labels, dataset.class_names, model.class_names))
    test_spec = DataSpec.model_validate(
        {"source": test_data, "max_rejected": own_data.max_rejected} | settings
    )
    try:
        splits, _ = load_labelled(test_spec, model.class_names, cache_dir, progress)
    except (DataError, UsageError) as error:
        problem = f"The images of publish.test_data cannot be used. {error.problem}"
        raise type(error)(problem, error.remedy, error.received) from None
    return next(splits[name] for name in _SPLITS if name in splits)


def _normalized_location(source: str) -> str:
    """Return a normalized path or URI, equal for two spellings of one location."""
    path = without_scheme(source)
    return path.rstrip("/") if "://" in path else os.path.realpath(path)


def _require_known(classes: Sequence[str], known: Sequence[str]) -> None:
    """Raise DataError if `classes` are not the classes that the models were trained on."""
    if sorted(all_normalized(classes)) != sorted(all_normalized(known)):
        other = sorted(set(all_normalized(classes)) ^ set(all_normalized(known)))
        raise DataError(
            "The images have other classes than the models, so they cannot decide a release.",
            "Set publish.test_data to images of the same classes.",
            received=", ".join(other)[:200] or "names that look the same",
        )


def translated(labels: NDArray[np.int32], names: Sequence[str], known: Sequence[str]) -> NDArray[np.int32]:
    """Map labels from indices of `names` to indices of `known`, which has the same classes."""
    if all_normalized(names) == all_normalized(known):
        return labels
    number = numbers_of(known)
    return renumber_labels(labels, np.array([number[normalized(name)] for name in names], np.int32))


def in_order(predictions: AnyPredictions, first: AnyPredictions) -> AnyPredictions:
    """Return `predictions` with images and classes in the order of `first`. Raises DataError."""
    names = first.names
    positions = {name: index for index, name in enumerate(predictions.names)}
    if set(positions) != set(names):
        raise DataError(
            "The images changed while they were read.",
            "Run the same command again.",
            received=f"{len(set(positions) ^ set(names))} other images",
        )
    order = np.array([positions[name] for name in names], np.int64)
    if isinstance(predictions, MultiLabelPredictions):
        return predictions.select(order).with_classes(_columns(predictions, first), first.class_names)
    labels = translated(predictions.labels, predictions.class_names, first.class_names)
    probabilities = predictions.probabilities[order][:, _columns(predictions, first)]
    return Predictions(predictions.split, tuple(names), labels[order], probabilities, first.class_names)


def _columns(predictions: AnyPredictions, first: AnyPredictions) -> NDArray[np.int32]:
    """Return the index of each class of `first` in `predictions`."""
    own = np.arange(len(first.class_names), dtype=np.int32)
    return translated(own, first.class_names, predictions.class_names)


def _require_same_classes(models: Sequence[LoadedModel]) -> None:
    if len({model.data.labels for model in models}) > 1:
        raise UsageError(
            "A model with one label per image cannot be compared with a model with several.",
            "Run `trainer promote RUN --force` to promote without a test.",
            received=f"data.labels {' and '.join(model.data.labels for model in models)}",
        )
    first = all_normalized(models[0].class_names)
    for model in models[1:]:
        names = all_normalized(model.class_names)
        if sorted(names) != sorted(first):
            other = sorted(set(first) ^ set(names))
            raise UsageError(
                "Models of different classes cannot be compared.",
                "Run `trainer promote RUN --force` to promote without a test.",
                received=", ".join(other)[:200] or "names that look the same",
            )
