"""Fused batch normalization, synchronized over all replicas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

from trainer.model.dropout import weight_of_rows

# Each replica assigns the same value, so hosts need no communication.
_EQUAL_EVERYWHERE = "only_first_replica"

_ARE_STATISTICS_FROZEN: ContextVar[bool] = ContextVar("are_statistics_frozen", default=False)


@contextmanager
def frozen_statistics(is_frozen: bool = True) -> Iterator[None]:
    """Use the moving statistics of models called in this context and do not update them, in training too."""
    token = _ARE_STATISTICS_FROZEN.set(is_frozen)
    try:
        yield
    finally:
        _ARE_STATISTICS_FROZEN.reset(token)


class FusedBatchNormalization(keras.layers.Layer):  # type: ignore[misc]
    """Batch normalization of the last of four axes (Ioffe and Szegedy 2015) by a fused operation.

    Inputs are [batch, height, width, channels] of any dtype. Keras composes the layer of a dozen operations
    in float32, which took a third of a residual network's step on a CPU. The weights are those of Keras's
    layer, and so are the moving statistics, with population variances. On several replicas the statistics are
    those of the global batch.
    """

    def __init__(
        self, momentum: float = 0.99, epsilon: float = 1e-3, scale: bool = True, **options: Any
    ) -> None:
        """scale: whether gamma is trained; otherwise it stays 1."""
        super().__init__(**options)
        self.momentum, self.epsilon, self.scale = momentum, epsilon, scale

    def build(self, input_shape: Any) -> None:
        """Create the weights, one value per channel."""
        made = {"shape": (input_shape[-1],), "autocast": False}
        moving = {**made, "trainable": False, "aggregation": _EQUAL_EVERYWHERE}
        self.gamma = self.add_weight(name="gamma", initializer="ones", **(made if self.scale else moving))
        self.beta = self.add_weight(name="beta", initializer="zeros", **made)
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **moving)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **moving)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return `inputs` normalized by the batch's statistics in training, otherwise by the moving ones."""
        if not (training and self.trainable) or _ARE_STATISTICS_FROZEN.get():
            mean, variance = self.moving_mean.value, self.moving_variance.value
            return self._fused(inputs, mean=mean, variance=variance, is_training=False).y
        empty = tf.zeros([0], tf.float32)
        done = self._fused(inputs, mean=empty, variance=empty, is_training=True)
        # The operation returns the sample variance, with the divisor count - 1.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        mean, variance, answers = done.batch_mean, done.batch_variance * (count - 1.0) / count, done.y
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            mean, variance, total = self._over_replicas(weight_of_rows() * count, mean, variance)
            answers = _normalized(
                inputs, self.gamma.value, self.beta.value, mean, variance, total, self.epsilon
            )
        self._move(self.moving_mean.value, mean)
        self._move(self.moving_variance.value, variance)
        return answers

    def _over_replicas(
        self, count: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return mean and variance, float32 [channels], over the values of all replicas, and their number.

        The moments are about the moving mean, which is the same on all replicas. Moments about zero would
        lose digits if the mean is large compared to the deviation.
        """
        shift = tf.stop_gradient(tf.convert_to_tensor(self.moving_mean.value))
        mean, variance = tf.stop_gradient(mean), tf.stop_gradient(variance)
        # Rows that are only padding are excluded.
        first = tf.where(count > 0.0, count * (mean - shift), 0.0)
        second = tf.where(count > 0.0, count * (variance + tf.square(mean - shift)), 0.0)
        sums = _summed(tf.stack([first, second, tf.fill(tf.shape(mean), count)]))
        first, second = sums[0] / sums[2], sums[1] / sums[2]
        return shift + first, tf.maximum(0.0, second - tf.square(first)), sums[2]

    def _fused(self, inputs: Any, **statistics: Any) -> Any:
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=self.gamma.value, offset=self.beta.value, epsilon=self.epsilon, **statistics
        )

    def _move(self, moving: tf.Variable, value: tf.Tensor) -> None:
        moving.assign(moving * self.momentum + value * (1.0 - self.momentum))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return `input_shape`."""
        return input_shape


def _summed(values: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def _normalized(
    inputs: Any, gamma: Any, beta: Any, mean: tf.Tensor, variance: tf.Tensor, count: tf.Tensor, epsilon: float
) -> Any:
    """Return inputs normalized by statistics that are themselves functions of the inputs of all replicas.

    The gradient is that of batch normalization with its two sums taken over all replicas. The gradients of
    gamma and beta are local to this replica, like all gradients before the all-reduce.
    """

    weight = weight_of_rows()  # read here, because the gradient is computed outside of `of_rows`

    @tf.custom_gradient
    def normalize(x: Any, scale: Any, offset: Any) -> Any:
        done = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
        )

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            local = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream, x=x, scale=scale, epsilon=epsilon, is_training=False,
                reserve_space_1=mean, reserve_space_2=variance, reserve_space_3=done.reserve_space_3,
            )  # fmt: skip
            sums = _summed(tf.stack([local.offset_backprop, local.scale_backprop])) / count
            inverse = tf.math.rsqrt(variance + epsilon)
            # dx = scale * inverse * (dy - mean(dy) - normalized x * mean(dy * normalized x))
            slope = scale * inverse * inverse * sums[1]
            level = scale * inverse * sums[0] - slope * mean
            through = weight * (level + slope * tf.cast(x, tf.float32))
            return local.x_backprop - tf.cast(through, x.dtype), local.scale_backprop, local.offset_backprop

        return done.y, gradient

    return normalize(inputs, gamma, beta)
