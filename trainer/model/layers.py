"""Layers of several families and their seeded initializers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.model.dropout import weight_of_rows

_MOST = 10**9
"""Upper limit of seeds, as in Keras."""


class Kernels:
    """Factory for initializers: the same seed and order of calls give the same initializers."""

    def __init__(self, seed: int) -> None:
        """seed: the run's seed, 0 to 2**31 - 1."""
        self.seed = seed
        self._random = random.Random(seed)

    def glorot(self) -> keras.Initializer:
        """Return an initializer for layers with any activation (Glorot and Bengio 2010, uniform)."""
        return keras.initializers.GlorotUniform(seed=self._random.randint(1, _MOST))

    def he(self) -> keras.Initializer:
        """Return an initializer for layers before ReLU (He et al. 2015, normal)."""
        return keras.initializers.HeNormal(seed=self._random.randint(1, _MOST))

    def seeded(self, config: Any) -> Any:
        """Return the serialized Keras initializer `config`, with a seed if it is a random one."""
        if not isinstance(config, dict) or "seed" not in config.get("config", {}):
            return config
        return {**config, "config": {**config["config"], "seed": self._random.randint(1, _MOST)}}

    def normal(self, deviation: float) -> keras.Initializer:
        """Return a normal initializer with this standard deviation."""
        return keras.initializers.RandomNormal(stddev=deviation, seed=self._random.randint(1, _MOST))

    def dirac(self) -> keras.Initializer:
        """Return a convolution initializer that passes the inputs on, next to random filters."""
        return Dirac(seed=self._random.randint(1, _MOST))


class Dirac(keras.initializers.Initializer):  # type: ignore[misc]
    """Identity in as many filters as there are inputs (Zagoruyko and Komodakis 2017), others uniform."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Return a kernel of `shape`, [height, width, in, out]."""
        uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=self.seed)
        kernel = np.array(uniform(shape, dtype="float32"))
        passed = min(shape[2:])
        kernel[..., :passed] = 0.0
        kernel[shape[0] // 2, shape[1] // 2, :passed, :passed] = np.eye(passed)
        return keras.ops.convert_to_tensor(kernel, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": self.seed}


# Each replica assigns the same value, so hosts need no communication.
_EQUAL_EVERYWHERE = "only_first_replica"
OUTPUT_LAYERS = frozenset(("logits", "unit"))
"""Names of the layers of this module that have weights."""


class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D` whose stride is at most the size of its input, with the same values.

    If the stride is larger than the feature map, oneDNN's bfloat16 filter gradient (TensorFlow 2.21 on a CPU)
    does not initialize the gradient of weights that see only padding. The gradient then contains arbitrary
    memory, including NaN. The same convolution with the stride limited to the size of the map is exact.

    A stride that is larger than both sides yields one output, at the same position and with the same padding.
    If only one side is smaller, the input is padded with zeros explicitly.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Return the convolution of `inputs` [batch, height, width, channels] with `kernel`."""
        sides = [side for side in inputs.shape[1:3] if side is not None]
        # TensorFlow's CPU kernels support only equal strides for both axes.
        stride, padding = min(self.strides[0], max(sides, default=self.strides[0])), self.padding
        if padding == "same" and len(sides) == 2 and min(sides) < stride:
            margins = [_padding_margins(side, self.kernel_size[0], stride) for side in sides]
            inputs, padding = keras.ops.pad(inputs, [(0, 0), *margins, (0, 0)]), "valid"
        return keras.ops.conv(
            inputs, kernel, strides=stride, padding=padding, dilation_rate=self.dilation_rate
        )


def _padding_margins(side: int, kernel_side: int, stride: int) -> tuple[int, int]:
    """Return the number of zeros that `same` adds before and after a side."""
    outputs = -(-side // stride)
    total = max((outputs - 1) * stride + kernel_side - side, 0)
    return total // 2, total - total // 2


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
        options = {"shape": (input_shape[-1],), "autocast": False}
        moving = {**options, "trainable": False, "aggregation": _EQUAL_EVERYWHERE}
        self.gamma = self.add_weight(name="gamma", initializer="ones", **(options if self.scale else moving))
        self.beta = self.add_weight(name="beta", initializer="zeros", **options)
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **moving)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **moving)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return `inputs` normalized by the batch's statistics in training, otherwise by the moving ones."""
        if not (training and self.trainable) or _ARE_STATISTICS_FROZEN.get():
            mean, variance = self.moving_mean.value, self.moving_variance.value
            return self._fused(inputs, mean=mean, variance=variance, is_training=False).y
        empty = tf.zeros([0], tf.float32)
        result = self._fused(inputs, mean=empty, variance=empty, is_training=True)
        # The operation returns the sample variance, with the divisor count - 1.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        mean, variance = result.batch_mean, result.batch_variance * (count - 1.0) / count
        outputs = result.y
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            mean, variance, total = self._reduce_moments(weight_of_rows() * count, mean, variance)
            outputs = _normalize_globally(
                inputs, self.gamma.value, self.beta.value, mean, variance, total, self.epsilon
            )
        self._update_moving(self.moving_mean.value, mean)
        self._update_moving(self.moving_variance.value, variance)
        return outputs

    def _reduce_moments(
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
        sums = _all_reduce_sum(tf.stack([first, second, tf.fill(tf.shape(mean), count)]))
        first, second = sums[0] / sums[2], sums[1] / sums[2]
        return shift + first, tf.maximum(0.0, second - tf.square(first)), sums[2]

    def _fused(self, inputs: Any, **statistics: Any) -> Any:
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=self.gamma.value, offset=self.beta.value, epsilon=self.epsilon, **statistics
        )

    def _update_moving(self, moving: tf.Variable, value: tf.Tensor) -> None:
        moving.assign(moving * self.momentum + value * (1.0 - self.momentum))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return `input_shape`."""
        return input_shape


def _all_reduce_sum(values: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def _normalize_globally(
    inputs: Any, gamma: Any, beta: Any, mean: tf.Tensor, variance: tf.Tensor, count: tf.Tensor, epsilon: float
) -> Any:
    """Return inputs normalized by statistics that are themselves functions of the inputs of all replicas.

    The gradient is that of batch normalization with its two sums taken over all replicas. The gradients of
    gamma and beta are local to this replica, like all gradients before the all-reduce.
    """

    weight = weight_of_rows()  # read here, because the gradient is computed outside of `of_rows`

    @tf.custom_gradient
    def normalize(x: Any, scale: Any, offset: Any) -> Any:
        result = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
        )

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            local = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream, x=x, scale=scale, epsilon=epsilon, is_training=False,
                reserve_space_1=mean, reserve_space_2=variance, reserve_space_3=result.reserve_space_3,
            )  # fmt: skip
            sums = _all_reduce_sum(tf.stack([local.offset_backprop, local.scale_backprop])) / count
            inverse = tf.math.rsqrt(variance + epsilon)
            # dx = scale * inverse * (dy - mean(dy) - normalized x * mean(dy * normalized x))
            slope = scale * inverse * inverse * sums[1]
            level = scale * inverse * sums[0] - slope * mean
            through = weight * (level + slope * tf.cast(x, tf.float32))
            return local.x_backprop - tf.cast(through, x.dtype), local.scale_backprop, local.offset_backprop

        return result.y, gradient

    return normalize(inputs, gamma, beta)


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
