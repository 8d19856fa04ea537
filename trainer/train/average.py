"""Exponential moving average of a model's weights.

The averaged values go into the inference model. Averaged weights generalise better than the last ones (Polyak
and Juditsky 1992; Tarvainen and Valpola 2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf


class WeightAverage:
    """Shadow variables of all weights, including the moving statistics of batch normalization."""

    def __init__(self, model: keras.Model, decay: float) -> None:
        self.decay = decay
        self.weights = [weight.value for weight in model.weights]
        self.shadows = [
            tf.Variable(weight, trainable=False, name=f"average_{index}")
            for index, weight in enumerate(self.weights)
        ]

    def reset(self) -> None:
        """Set the average to the current weights."""
        for shadow, weight in zip(self.shadows, self.weights, strict=True):
            shadow.assign(weight)

    def update(self, step: tf.Tensor, changing: Sequence[keras.Variable]) -> None:
        """Move the shadows of the `changing` weights towards them, after step `step` of a phase (from 0).

        The decay is min(decay, (1 + step) / (10 + step)). It starts at 0.1, so that the initial weights of
        the phase fade quickly.
        """
        wanted = {id(weight.value) for weight in changing}
        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for shadow, weight in zip(self.shadows, self.weights, strict=True):
            if id(weight) in wanted:
                shadow.assign_sub((1.0 - decay) * (shadow - weight))
