"""Selection and encoding of the images that a report shows.

Each `Picture` embeds its image as a data URI.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.convert import as_rgb
from trainer.evaluate.metrics import AnyPredictions, Predictions

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

_LARGEST_SIDE = 224
_SMALL_SIDE = 64
_JPEG_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """One image with its prediction."""

    uri: str
    is_small: bool
    """Whether the image has so few pixels that it is enlarged without smoothing."""
    name: str
    label: str
    predicted: str
    """A class, or comma-separated labels."""
    probability: float
    """Probability of `predicted`."""
    label_probability: float


def choose_mistakes(predictions: AnyPredictions, count: int) -> Indices:
    """Return the indices of at most `count` wrong predictions, most confident first."""
    wrong = np.flatnonzero(~predictions.right)
    order = np.argsort(-predictions.confidence[wrong], kind="stable")
    return np.asarray(wrong[order][:count], dtype=np.int64)


def choose_correct(predictions: AnyPredictions, count: int) -> Indices:
    """Return the indices of at most `count` correct predictions: the most confident of each class in turn."""
    right = np.flatnonzero(predictions.right)
    right = right[np.argsort(-predictions.confidence[right], kind="stable")]
    labels = _kinds(predictions.labels[right])
    # Rank within the class: 0 for the most confident prediction of every class.
    turn = np.zeros(len(right), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(np.sum(labels == label))
    return np.asarray(right[np.argsort(turn, kind="stable")][:count], dtype=np.int64)


def choose_cell(predictions: Predictions, label: int, predicted: int, count: int) -> Indices:
    """Return the indices of at most `count` images of class `label` that are predicted as `predicted`.

    The most confident predictions are first.
    """
    cell = np.flatnonzero((predictions.labels == label) & (predictions.predicted == predicted))
    order = np.argsort(-predictions.confidence[cell], kind="stable")
    return np.asarray(cell[order][:count], dtype=np.int64)


def _kinds(labels: npt.NDArray[np.int32]) -> Indices:
    """Return a number per image, the same for images of one class or with the same labels."""
    return np.asarray(np.unique(labels, axis=0, return_inverse=True)[1], np.int64).reshape(len(labels))


def read_pictures(
    predictions: AnyPredictions,
    indices: Indices,
    pixels: Callable[[str, Indices], Pixels],
    largest: int = _LARGEST_SIDE,
) -> list[Picture]:
    """Return the images at `indices` with their predictions, with sides of at most `largest` pixels.

    pixels: maps (split, indices [n]) to uint8 [n, height, width, channels].
    """
    if not len(indices):
        return []
    images = pixels(predictions.split, indices)
    shown = predictions.select(indices)
    return [_picture(shown, number, image, largest) for number, image in enumerate(images)]


def _picture(predictions: AnyPredictions, number: int, image: Pixels, largest: int) -> Picture:
    uri, is_small = encode_picture(image, largest)
    return Picture(
        uri=uri,
        is_small=is_small,
        name=predictions.names[number],
        label=predictions.truth_text(number),
        predicted=predictions.predicted_text(number),
        probability=float(predictions.confidence[number]),
        label_probability=float(predictions.confidence_in_truth[number]),
    )


def encode_picture(image: Pixels, largest: int = _LARGEST_SIDE) -> tuple[str, bool]:
    """Return `image`, uint8 [height, width, channels], as a data URI, and whether it is small.

    Small images (up to 64 pixels) become PNG, which preserves every pixel. Others are downscaled to `largest`
    pixels and become JPEG.
    """
    small = max(image.shape[:2]) <= _SMALL_SIDE
    picture = Image.fromarray(as_rgb(image))
    data = io.BytesIO()
    if small:
        picture.save(data, "PNG", optimize=True)
    else:
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        picture.save(data, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}", small
