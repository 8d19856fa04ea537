"""The plain family: convolutions with ReLU and max pooling, as the paper and the tutorial have it.

In: pixels [batch, size, size, 3] in 0..255. Out: logits [batch, classes].
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from trainer.model.head import class_logits
from trainer.spec import PlainSpec


def plain_logits(spec: PlainSpec, pixels: Any, class_count: int, policy: keras.DTypePolicy) -> Any:
    """Return the logits [batch, classes] of `pixels`. Weights and padding are Keras's defaults."""
    x = layers.Rescaling(1 / 255, dtype=policy)(pixels)
    for index, filters in enumerate(spec.filters):
        x = layers.Conv2D(filters, 3, activation="relu", dtype=policy)(x)
        if spec.pool_last or index + 1 < len(spec.filters):
            x = layers.MaxPooling2D(2, dtype=policy)(x)
    x = layers.Flatten(dtype=policy)(x)
    for units in spec.dense_units:
        x = layers.Dense(units, activation="relu", dtype=policy)(x)
    if spec.dropout:
        x = layers.Dropout(spec.dropout, dtype=policy)(x)
    return class_logits(x, class_count, spec.binary_unit)
