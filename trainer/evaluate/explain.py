"""Occlusion maps: which parts of an image a prediction depends on.

Parts of the image are blurred one after the other, and the drop of the log-odds of the predicted class is
the importance of the blurred part (Zeiler and Fergus 2014; blurring instead of a grey patch as in Fong and
Vedaldi 2017, because a patch has edges of its own). Only the probabilities of the model are needed, so the
method works with every network and with an exported model. It is deterministic.

A map shows what the model uses, not whether it is right. `measure_map` checks a map by deletion and
insertion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.training.inference import batches_of
from trainer.training.objective import Objective

Pixels = NDArray[np.uint8]
Heat = NDArray[np.float32]
Classify = Callable[[NDArray[np.float32]], NDArray[Any]]
"""Maps float32 [batch, height, width, channels] in 0..255 to probabilities, [batch, classes]."""

CELLS = 7
"""Blurred parts along each side; a map costs `CELLS` ** 2 + 1 predictions."""
_REACH = 1.5
"""Distance from the centre of a part to its end, in cells; neighbouring parts overlap."""
_BLUR = 0.1
"""Standard deviation of the blur, as a share of the longer side."""
_LEAST, _LEAST_OF_MULTI = 1e-30, 1e-7
"""Smallest probabilities, so that the log-odds are finite: of float32, and of its distance from 1."""
_LARGE_SIDE, _LARGE_BATCH, _SMALL_BATCH = 128, 8, 100
"""From this side on, small batches are several times faster on a CPU; see `trainer.training.inference`."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Prediction for one image, and what it depends on."""

    pixels: Pixels
    """Input of the network, uint8 [height, width, channels]."""
    label: str
    """Predicted class, or the most probable label."""
    probability: float
    """Of `label`, in 0..1."""
    heat: Heat
    """Importance of each pixel, float32 [height, width] in 0..1; 0 everywhere if no part supports `label`."""


def build_explainer(
    model: keras.Model, objective: Objective, class_names: tuple[str, ...], is_multi: bool
) -> Callable[[Pixels], Explanation]:
    """Return a function from pixels to their explanation by `model`, which returns logits."""
    signature = [tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)]
    probabilities = tf.function(
        lambda images: objective.probabilities(model(images, training=False)),
        input_signature=signature,
        autograph=False,
    )
    return lambda pixels: explain(lambda images: probabilities(images).numpy(), pixels, class_names, is_multi)


def explain(classify: Classify, pixels: Pixels, class_names: tuple[str, ...], is_multi: bool) -> Explanation:
    """Return the most probable class of `pixels`, uint8 [height, width, channels], and its occlusion map.

    is_multi: whether the probabilities are independent of one another.
    """
    images = pixels[None].astype(np.float32)
    probabilities = np.asarray(classify(images), np.float64)[0]
    label = int(np.argmax(probabilities))
    heat = occlusion_map(classify, pixels, label, is_multi)
    return Explanation(pixels, class_names[label], float(probabilities[label]), heat)


def occlusion_map(classify: Classify, pixels: Pixels, label: int, is_multi: bool = False) -> Heat:
    """Return the importance of each pixel for the class `label`, float32 [height, width] in 0..1."""
    image = pixels.astype(np.float32)
    blur = blurred(image)
    down, across = _windows(image.shape[0]), _windows(image.shape[1])

    def build(rows: NDArray[Any]) -> NDArray[np.float32]:
        # Row 0 is the image itself, and row 1 + i has part i blurred.
        parts = np.maximum(rows - 1, 0)
        masks = down[parts // CELLS, :, None, None] * across[parts % CELLS][:, None, :, None]
        masks[rows == 0] = 0.0
        return np.asarray(image + masks * (blur - image), np.float32)

    odds = classify_in_batches(classify, image.shape, CELLS**2 + 1, build, label, is_multi)
    heat = np.maximum(_spread(odds[0] - odds[1:], down, across), 0.0)
    largest = float(heat.max())
    return np.asarray(heat / largest if largest > 0 else heat, np.float32)


def blurred(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `image`, float32 [height, width, channels], without details.

    Three box filters approximate a Gaussian filter, in a time that does not depend on its width.
    """
    from scipy.ndimage import uniform_filter  # slow import

    side = 2 * round(_BLUR * max(image.shape[:2])) + 1
    for _ in range(3):
        image = uniform_filter(image, (side, side, 1), mode="nearest")
    return image


def classify_in_batches(
    classify: Classify,
    shape: tuple[int, ...],
    count: int,
    build: Callable[[NDArray[Any]], NDArray[np.float32]],
    label: int,
    is_multi: bool,
) -> NDArray[np.float64]:
    """Return the log-odds of `label` for `count` images of `shape`, float64 [count].

    build: maps row numbers to images. The probability of the other classes is their sum, which is exact also
    where the probability of `label` is rounded to 1.
    """
    largest = _LARGE_BATCH if max(shape[:2]) >= _LARGE_SIDE else _SMALL_BATCH
    batches = [
        np.asarray(classify(build(rows)), np.float64) for rows in batches_of(count, tuple(shape), largest)
    ]
    probabilities = np.concatenate(batches)
    own = probabilities[:, label]
    others = 1.0 - own if is_multi else np.delete(probabilities, label, axis=1).sum(axis=1)
    least = _LEAST_OF_MULTI if is_multi else _LEAST
    return np.asarray(np.log(np.maximum(own, least)) - np.log(np.maximum(others, least)))


def _windows(side: int) -> Heat:
    """Return `CELLS` windows along a side, float32 [CELLS, side]: 1 at the centre, falling to 0 smoothly."""
    positions = (np.arange(side) + 0.5) / side * CELLS
    distances = np.abs(positions[None] - (np.arange(CELLS)[:, None] + 0.5)) / _REACH
    # The inner half of the window is flat.
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(2.0 * distances - 1.0, 0.0, 1.0))).astype(np.float32)


def _spread(values: NDArray[np.float64], down: Heat, across: Heat) -> NDArray[np.float64]:
    """Return the mean of the parts' `values`, [CELLS ** 2], at each pixel, weighted by their windows."""
    sums = down.T @ values.reshape(CELLS, CELLS) @ across
    return np.asarray(sums / (down.sum(axis=0)[:, None] * across.sum(axis=0)[None]))


def measure_map(
    classify: Classify, pixels: Pixels, label: int, heat: Heat, is_multi: bool = False, steps: int = 10
) -> tuple[float, float]:
    """Return the areas under the deletion and the insertion curve, each in 0..1 (Petsiuk et al. 2018).

    Deletion blurs the most important pixels first; a good map has a small area. Insertion starts with the
    blurred image and restores the most important pixels first; a good map has a large area. The curves are
    the probability of `label` after each of `steps` equal shares of the pixels.
    """
    image = pixels.astype(np.float32)
    blur = blurred(image)
    rank = np.empty(heat.size)
    rank[np.argsort(-heat, axis=None, kind="stable")] = np.arange(heat.size) / heat.size
    chosen = rank.reshape(1, *heat.shape) < (np.arange(steps + 1) / steps)[:, None, None]
    areas = []
    for before, after in ((image, blur), (blur, image)):
        odds = classify_in_batches(
            classify,
            image.shape,
            steps + 1,
            partial(_mixed, chosen, before, after),
            label,
            is_multi,
        )
        curve = 1.0 / (1.0 + np.exp(-odds))
        areas.append(float(np.mean((curve[1:] + curve[:-1]) / 2.0)))
    return areas[0], areas[1]


def _mixed(
    chosen: NDArray[np.bool_],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    rows: NDArray[Any],
) -> NDArray[np.float32]:
    """Return float32 [rows, height, width, channels]: `after` at the chosen pixels of each row."""
    return np.where(chosen[rows][..., None], after, before)


def random_map(height: int, width: int, seed: int) -> Heat:
    """Return random importances, as smooth as an occlusion map, float32 [height, width] in 0..1."""
    values = np.random.default_rng(seed).uniform(size=CELLS**2)
    heat = _spread(values, _windows(height), _windows(width))
    return np.asarray(heat / heat.max(), np.float32)
