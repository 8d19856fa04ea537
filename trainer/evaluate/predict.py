"""Inference and evaluation with a finished model.

Image files are classified; a labelled source is evaluated to metrics by split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.convert import Prepared, prepare
from trainer.data.dataset import Split
from trainer.data.header import reason_of_failure
from trainer.data.ingest import build_to_pixels
from trainer.data.items import Rejection
from trainer.data.load import load_labelled
from trainer.data.progress import Progress
from trainer.data.readers.read_result import find_rejection, list_files
from trainer.data.statistics import count_trained
from trainer.errors import DataError, UsageError
from trainer.evaluate.explain import Explanation, explain
from trainer.evaluate.metrics import AnyPredictions, compute_metrics, predictions_of
from trainer.export import LoadedModel
from trainer.sanitize import printable, shown_address
from trainer.spec import PIXEL_SETTINGS, load_spec
from trainer.training.inference import batches_of

_MOST_FILES = 32
"""Maximum number of files whose bytes are in memory at once."""
_FIXED_BY_MODEL = ("data.labels", *(f"data.{name}" for name in PIXEL_SETTINGS))
"""Settings that are fixed by the training of the model."""


@dataclass(frozen=True, eq=False)
class FileAnswer:
    """Answer of a model for one image."""

    probabilities: np.ndarray[Any, Any]
    """float32 [classes]."""
    known: float | None = None
    """p-value in 0..1 of the image among those that are like the training images; None without a detector."""
    accepted: bool | None = None
    """Whether `known` reaches the level of the model; None without a detector."""


FilePrediction = FileAnswer | str
"""The answer, or the reason why there is none."""


def find_pictures(paths: Sequence[Path]) -> tuple[list[Path], list[Rejection]]:
    """Return the files in `paths` and the images below the folders in it, sorted within each folder.

    Also return a rejection, by path, for each file in the folders that is not an image; hidden files are
    ignored. Raises UsageError if a path does not exist, DataError if there is no image at all.
    """
    images: list[Path] = []
    rejected: list[Rejection] = []
    for path in paths:
        if path.is_dir():
            rejections = {file: find_rejection(file, printable(str(file))) for file in list_files(path)}
            images += sorted(file for file, rejection in rejections.items() if rejection is None)
            rejected += [rejection for rejection in rejections.values() if rejection is not None]
        elif path.exists():
            images.append(path)
        else:
            raise UsageError("The image or folder does not exist.", "Check the path.", received=path)
    if not images:
        others = f" (other files: {len(rejected)})" if rejected else ""
        raise DataError(
            "No images found.",
            "Pass image files, or folders that contain images.",
            received=f"{', '.join(map(str, paths))}{others}",
        )
    return images, rejected


def classify_files(
    model: LoadedModel, paths: Sequence[Path], on_converted: Callable[[str], None] = lambda name: None
) -> Iterator[tuple[Path, FilePrediction]]:
    """Yield each path with its answer, or why there are none, in order and batch by batch.

    Images are converted as for training; `on_converted` is called with the format of each converted image.
    """
    for rows in batches_of(len(paths), model.data.pixel_format.shape, _MOST_FILES):
        batch = [paths[row] for row in rows]
        prepared = [_read(path, model.data.max_image_pixels) for path in batch]
        for image in prepared:
            if image.converted:
                on_converted(image.converted)
        contents = [image.reason or image.data for image in prepared]
        yield from zip(batch, _classify(contents, model), strict=True)


def explain_file(model: LoadedModel, path: Path) -> Explanation | str:
    """Return the explanation of the prediction for the image at `path`, or why there is none."""
    prepared = _read(path, model.data.max_image_pixels)
    if prepared.reason:
        return prepared.reason
    try:
        pixels = build_to_pixels(model.data.pixel_format)("image", [prepared.data])[0]
    except tf.errors.InvalidArgumentError:
        return reason_of_failure(prepared.data)
    return explain(model.classify_pixels, pixels, model.class_names, model.data.labels == "multi")


def evaluate_source(
    model: LoadedModel,
    source: str,
    cache_dir: Path,
    progress: Progress,
    settings: Sequence[str] = (),
    images: Mapping[str, Any] | None = None,
    on_predictions: Callable[[Split, AnyPredictions], object] = lambda split, predictions: None,
) -> tuple[dict[str, dict[str, float]], tuple[Rejection, ...]]:
    """Return the metrics of `model` by split of `source`, and the rejections; see `load_labelled`.

    settings: data settings of a spec, such as data.max_rejected=0.05; those that the model was trained with
    cannot be changed. images: content of images.json of the model's run, if there is one; the metrics then
    have `trained_checked`, the number of images that could be looked up in it, and `trained_share`, the share
    of these that the run was trained on. on_predictions is called with each split and its predictions.
    Raises UsageError for a setting that does not exist or cannot be changed.
    """
    for setting in settings:
        key = ".".join(setting.partition("=")[0].strip().split(".")[:2])
        if not setting.startswith("data.") or key in _FIXED_BY_MODEL:
            raise UsageError(
                "This setting cannot be changed for an evaluation.",
                "Use a setting of how the data are read, such as data.layout=folders. The type of labels, "
                "the image size and the preprocessing are fixed by the model.",
                received=shown_address(setting),
            )
    fixed = {"source": source, **model.data.model_dump(exclude_unset=True)}
    spec = load_spec(
        settings=settings, overrides={f"data.{name}": value for name, value in fixed.items()}
    ).data
    splits, rejected = load_labelled(spec, model.class_names, cache_dir, progress)
    metrics = {}
    for name, split in splits.items():
        predictions = predict_split(model, split)
        on_predictions(split, predictions)
        metrics[name] = compute_metrics(predictions)
        trained, checked = count_trained(split.contents, images or {})
        if checked:
            metrics[name] |= {"trained_share": trained / checked, "trained_checked": checked}
    return metrics, rejected


def _classify(contents: Sequence[str | bytes], model: LoadedModel) -> list[FilePrediction]:
    """Return the result of each image; a text in `contents`, the reason of a failed read, is passed on."""
    encoded = [content for content in contents if isinstance(content, bytes)]
    results = iter(_answers_of(encoded, model) if encoded else [])
    return [next(results) if isinstance(content, bytes) else content for content in contents]


def _answers_of(images: Sequence[bytes], model: LoadedModel) -> list[FilePrediction]:
    answers = model.classify(images)
    known, accepted = answers.known, answers.accepted
    return [
        reason_of_failure(data)
        if error
        else FileAnswer(
            answers.probabilities[row],
            None if known is None else float(known[row]),
            None if accepted is None else bool(accepted[row]),
        )
        for row, (data, error) in enumerate(zip(images, answers.errors, strict=True))
    ]


def _read(path: Path, max_pixels: int) -> Prepared:
    if not path.is_file():
        return Prepared(b"", "not a regular file")
    try:
        data = path.read_bytes()
    except OSError as error:
        return Prepared(b"", f"cannot be read: {error.strerror}")
    return prepare(data, max_pixels)


def predict_split(model: LoadedModel, split: Split) -> AnyPredictions:
    """Return the predictions of `model` for the images of `split`, in its order."""
    batches = batches_of(len(split.labels), model.data.pixel_format.shape)
    probabilities = np.concatenate([model.classify_pixels(split.pixels.gather(rows)) for rows in batches])
    # The model returns float32; the metrics need rows that sum to 1 in float64.
    wide = probabilities.astype(np.float64)
    is_multi = model.data.labels == "multi"
    return predictions_of(
        split.name,
        tuple(item.name for item in split.items),
        split.labels,
        wide if is_multi else wide / wide.sum(axis=1, keepdims=True),
        model.class_names,
        np.array(model.thresholds) if is_multi else None,
    )
