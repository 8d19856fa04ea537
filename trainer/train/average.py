"""A moving average of a model's weights.

In: a model. Out: shadow variables that follow its weights, of which the inference model
takes its values. Averages of the weights generalise better than the last ones (Polyak and
Juditsky 1992; Tarvainen and Valpola 2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf


class WeightAverage:
    """Shadows of all weights, the statistics of batch normalisation included."""

    def __init__(self, model: keras.Model, decay: float) -> None:
        self.decay = decay
        self.weights = [weight.value for weight in model.weights]
        self.shadows = [
            tf.Variable(weight, trainable=False, name=f"average_{index}")
            for index, weight in enumerate(self.weights)
        ]

    def reset(self) -> None:
        """Make the average equal to the weights."""
        for shadow, weight in zip(self.shadows, self.weights, strict=True):
            shadow.assign(weight)

    def update(self, step: tf.Tensor, changing: Sequence[keras.Variable]) -> None:
        """Move the shadows of the `changing` weights towards them, after step `step` of a phase (from 0).

        The decay grows from 0.1 to its full value, so that the weights that the phase began with
        don't linger: min(decay, (1 + step) / (10 + step)).
        """
        wanted = {id(weight.value) for weight in changing}
        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for shadow, weight in zip(self.shadows, self.weights, strict=True):
            if id(weight) in wanted:
                shadow.assign_sub((1.0 - decay) * (shadow - weight))
