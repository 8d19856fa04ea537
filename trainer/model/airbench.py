"""airbench family: whitened patches, convolutions with GELU, batch normalization, max pooling.

The model maps pixels [batch, height, width, 3] in 0..255, of any size, to logits [batch, classes]. It is the
network of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", with global max pooling instead of
a final 3 x 3 pooling, which is the same for images of 32 pixels.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from trainer.model.dropout import RowDropout
from trainer.model.initializers import Kernels
from trainer.model.layers import Conv2D, FusedBatchNormalization, class_logits
from trainer.model.whitening import WhiteningConv2D
from trainer.spec import AirbenchSpec

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
