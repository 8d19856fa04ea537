"""airbench family: whitened patches, convolutions with GELU, batch normalization, max pooling.

The model maps pixels [batch, height, width, 3] in 0..255, of any size, to logits [batch, classes]. It is the
network of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", with global max pooling instead of
a final 3 x 3 pooling, which is the same for images of 32 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from trainer.model.dropout import RowDropout
from trainer.model.layers import Conv2D, FusedBatchNormalization, Kernels, class_logits
from trainer.spec import AirbenchSpec

_SIDE = 2
"""Side of a patch in pixels."""
# Added to the variances, as a share of the mean variance of a pixel, to limit the gain of flat directions.
_EPSILON = 5e-4
_CHUNK_BYTES = 64 * 1024 * 1024


class WhiteningConv2D(keras.layers.Layer):  # type: ignore[misc]
    """2 x 2 convolution without padding, with a fixed kernel and a trained bias.

    Maps pixels [batch, height, width, channels] in -1..1 to [batch, height - 1, width - 1, 8 * channels].
    """

    def __init__(self, initial: Any = "glorot_uniform", **options: Any) -> None:
        """initial: initializer of the kernel, which `whitening_weights` later replace."""
        super().__init__(**options)
        self.initial = initial

    def build(self, input_shape: Any) -> None:
        """Create kernel and bias."""
        channels = input_shape[-1]
        filters = 2 * _SIDE * _SIDE * channels
        self.kernel = self.add_weight(
            name="kernel",
            shape=(_SIDE, _SIDE, channels, filters),
            initializer=self.initial,
            trainable=False,
            aggregation="only_first_replica",
        )
        self.bias = self.add_weight(name="bias", shape=(filters,), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        """Return the whitened patches of `inputs`."""
        return keras.ops.conv(inputs, self.kernel, padding="valid") + self.bias

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the outputs for inputs of `input_shape`."""
        batch, height, width, channels = input_shape
        sides = (side and side - _SIDE + 1 for side in (height, width))
        return (batch, *sides, 2 * _SIDE * _SIDE * channels)


@dataclass(frozen=True)
class PatchSums:
    """Sums over patches of integer pixels."""

    count: NDArray[np.int64]
    """Number of patches, int64 []."""
    first: NDArray[np.int64]
    """Sum of the patches, int64 [values]."""
    second: NDArray[np.int64]
    """Sum of the products of their values, int64 [values, values]."""


def sum_patches(images: NDArray[np.uint8]) -> PatchSums:
    """Return the sums over all patches of `images`, uint8 [count, height, width, channels]."""
    size = max(1, _CHUNK_BYTES // (8 * _SIDE * _SIDE * int(np.prod(images.shape[1:]))))
    starts = range(0, max(1, len(images)), size)
    return total_of([_sum_of_chunk(images[start : start + size]) for start in starts])


def total_of(parts: Sequence[PatchSums]) -> PatchSums:
    """Return the sums over the patches of all `parts`, of which there is at least one."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return PatchSums(*(np.sum(column, axis=0) for column in columns))


def _sum_of_chunk(images: NDArray[np.uint8]) -> PatchSums:
    windows = np.lib.stride_tricks.sliding_window_view(images, (_SIDE, _SIDE), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, _SIDE * _SIDE * images.shape[3])
    # Products of float64 are fast, and exact for integers of this size.
    doubles = patches.astype(np.float64)
    sums = (len(doubles), doubles.sum(axis=0), doubles.T @ doubles)
    return PatchSums(*(np.asarray(total).astype(np.int64) for total in sums))


def whitening_weights(sums: PatchSums) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return kernel, float32 [2, 2, channels, filters], and bias, float32 [filters], for pixels in -1..1.

    The bias subtracts the mean patch. Half of the filters are the negatives of the others.
    """
    mean = sums.first / sums.count
    covariance = (sums.second / sums.count - np.outer(mean, mean)) / 127.5**2
    variances, directions = np.linalg.eigh(covariance)
    epsilon = max(_EPSILON * float(np.diag(covariance).mean()), 1e-6)
    half = directions / np.sqrt(np.maximum(variances, 0.0) + epsilon)
    matrix = np.concatenate([half, -half], axis=1)
    bias = -(mean / 127.5 - 1.0) @ matrix
    kernel = matrix.reshape(_SIDE, _SIDE, -1, matrix.shape[1])
    return kernel.astype(np.float32), bias.astype(np.float32)


# The training has few steps, so the moving statistics must adapt fast.
_MOMENTUM = 0.6
# GELU is close to x * sigmoid(1.702 x) (Hendrycks and Gimpel 2016), which is faster to train on a CPU.
_GELU_SLOPE = 1.702
# Chosen so that one learning rate fits the output layer and the biases. The source uses the rates 0.67 and
# 0.053, for logits of its features' mean and weights of standard deviation 1; 0.053 * 3.5**2 is about 0.67.
_HEAD_SCALE = 3.5


def airbench_logits(
    spec: AirbenchSpec, pixels: Any, class_count: int, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    """Return the logits [batch, classes] of `pixels`."""
    x = layers.Rescaling(1 / 127.5, offset=-1.0, dtype=policy)(pixels)
    x = Gelu(dtype=policy)(WhiteningConv2D(kernels.glorot(), dtype=policy)(x))
    for filters in spec.filters:
        x = _group(x, filters, spec.convolutions, policy, kernels)
    x = layers.GlobalMaxPooling2D(dtype=policy)(x)
    if spec.dropout:
        x = RowDropout(spec.dropout, kernels.seed, dtype=policy)(x)
    # There are many features, which are large after max pooling, but logits must be small at first. The split
    # of this factor between a constant and the weights determines how far a step of SGD moves the logits.
    x = layers.Rescaling(_HEAD_SCALE / x.shape[-1], dtype=policy)(x)
    # A bias of the logits would diverge at the learning rate of the other biases.
    return class_logits(x, class_count, kernels, kernel=kernels.normal(1 / _HEAD_SCALE), use_bias=False)


class Gelu(layers.Layer):  # type: ignore[misc]
    """Gaussian error linear unit, approximated by a sigmoid."""

    def call(self, inputs: Any) -> Any:
        """Return x * sigmoid(1.702 x), elementwise."""
        return tf.nn.silu(inputs, beta=_GELU_SLOPE)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return `input_shape`."""
        return input_shape


def _group(x: Any, filters: int, convolutions: int, policy: keras.DTypePolicy, kernels: Kernels) -> Any:
    """Return features of half the size; the second and third convolution, if any, are residual."""
    x = layers.MaxPooling2D(2, dtype=policy)(_convolve(x, filters, policy, kernels))
    x = shortcut = Gelu(dtype=policy)(_normalize(x, policy))
    for index in range(1, convolutions):
        x = _normalize(_convolve(x, filters, policy, kernels), policy)
        if index == 2:
            x = layers.Add(dtype=policy)([x, shortcut])
        x = Gelu(dtype=policy)(x)
    return x


def _convolve(x: Any, filters: int, policy: keras.DTypePolicy, kernels: Kernels) -> Any:
    initial = kernels.dirac()
    return Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer=initial, dtype=policy)(x)


def _normalize(x: Any, policy: keras.DTypePolicy) -> Any:
    return FusedBatchNormalization(momentum=_MOMENTUM, epsilon=1e-5, scale=False, dtype=policy)(x)
