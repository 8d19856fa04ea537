"""Output layer of all families: features [batch, features] to float32 logits [batch, classes]."""

from __future__ import annotations

from typing import Any

import keras

from trainer.model.initializers import Kernels

OUTPUT_LAYERS = frozenset(("logits", "unit"))
"""Names of the layers of this module that have weights."""


def class_logits(
    features: Any,
    class_count: int,
    kernels: Kernels,
    binary_unit: bool = False,
    kernel: keras.Initializer | None = None,
    use_bias: bool = True,
) -> Any:
    """Return logits [batch, classes] in float32 of features [batch, features] of any dtype.

    With `binary_unit` and two classes, a single unit z is the logit of the second class, and the logits are
    [0, z]. Their softmax is the sigmoid of z and their cross-entropy is the binary one, so a one-unit network
    needs no separate loss or metrics. kernel: the initializer of the weights, Glorot uniform by default.
    use_bias: whether the output layer has a bias.
    """
    if not (binary_unit and class_count == 2):
        return _dense(class_count, kernel or kernels.glorot(), "logits", use_bias)(features)
    unit = _dense(1, kernel or kernels.glorot(), "unit", use_bias)(features)
    zero = keras.layers.Rescaling(0.0, dtype="float32", name="zero")(unit)
    return keras.layers.Concatenate(dtype="float32", name="logits")([zero, unit])


def _dense(units: int, kernel: keras.Initializer, name: str, use_bias: bool) -> keras.layers.Dense:
    return keras.layers.Dense(units, use_bias=use_bias, kernel_initializer=kernel, dtype="float32", name=name)
