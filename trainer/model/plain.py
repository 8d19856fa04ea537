"""Plain family: convolutions with ReLU and max pooling, as in the paper and the tutorial.

The model maps pixels [batch, height, width, channels] in 0..255 to logits [batch, classes].
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from trainer.model.dropout import RowDropout
from trainer.model.layers import Kernels, class_logits
from trainer.spec import PlainSpec


def plain_logits(
    spec: PlainSpec, pixels: Any, class_count: int, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    """Return the logits [batch, classes] of `pixels`. Initializers and padding are Keras's defaults."""
    unseen = [(0, side - _seen_side(spec, side)) for side in pixels.shape[1:3]]
    x = layers.Cropping2D(unseen, dtype=policy)(pixels)
    x = layers.Rescaling(1 / 255, dtype=policy)(x)
    for filters, is_pooled in zip(spec.filters, spec.pools, strict=True):
        x = layers.Conv2D(filters, 3, activation="relu", kernel_initializer=kernels.glorot(), dtype=policy)(x)
        if is_pooled:
            x = layers.MaxPooling2D(2, dtype=policy)(x)
    x = layers.Flatten(dtype=policy)(x)
    for units in spec.dense_units:
        x = layers.Dense(units, activation="relu", kernel_initializer=kernels.glorot(), dtype=policy)(x)
    if spec.dropout:
        x = RowDropout(spec.dropout, kernels.seed, dtype=policy)(x)
    return class_logits(x, class_count, kernels, spec.binary_unit)


def _seen_side(spec: PlainSpec, side: int) -> int:
    """Return how many of the first `side` rows of pixels affect the logits.

    Pooling drops the last row of an odd number, and with it the pixels that only this row depends on: the
    last 8 of the paper's 150. Cropping them leaves the logits unchanged and makes a step an eighth faster.
    """
    side = spec.last_side(side)
    for is_pooled in reversed(spec.pools):
        side = 2 * side + 2 if is_pooled else side + 2
    return side
