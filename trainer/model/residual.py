"""Residual family: identity shortcuts, batch normalization, global average pooling.

The model maps pixels [batch, height, width, channels] in 0..255, of any size, to logits [batch, classes]. The
shortcut of a block that halves the size has average pooling before its 1 x 1 convolution, so that no pixel is
skipped (He et al. 2019, "Bag of Tricks", ResNet-D).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from trainer.model.dropout import RowDropout
from trainer.model.layers import Conv2D, FusedBatchNormalization, Kernels, class_logits
from trainer.spec import ResidualSpec

# With the default of 0.99 half of the initial value remains after 70 steps: too slow for small data.
_MOMENTUM = 0.9


def residual_logits(
    spec: ResidualSpec, pixels: Any, class_count: int, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    """Return the logits [batch, classes] of `pixels`."""
    x = layers.Rescaling(1 / 127.5, offset=-1.0, dtype=policy)(pixels)
    x = _convolve(x, spec.stem_filters, 3, spec.stem_stride, policy, kernels)
    x = layers.ReLU(dtype=policy)(_normalize(x, policy))
    count, index = sum(spec.blocks), 0
    for filters, blocks in zip(spec.filters, spec.blocks, strict=True):
        for block in range(blocks):
            index += 1
            skipped = spec.stochastic_depth * index / count
            depth = RowDropout(skipped, kernels.seed, whole_rows=True, dtype=policy) if skipped else None
            x = _block(x, filters, 2 if block == 0 else 1, depth, policy, kernels)
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    if spec.dropout:
        x = RowDropout(spec.dropout, kernels.seed, dtype=policy)(x)
    return class_logits(x, class_count, kernels)


def _block(
    x: Any, filters: int, stride: int, depth: RowDropout | None, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    """Return the output of a block, whose branch `depth` drops for some images (Huang et al. 2016)."""
    shortcut = _shortcut(x, filters, stride, policy, kernels)
    x = _convolve(x, filters, 3, stride, policy, kernels)
    x = layers.ReLU(dtype=policy)(_normalize(x, policy))
    x = _convolve(x, filters, 3, 1, policy, kernels)
    x = _normalize(x, policy)
    if depth is not None:
        x = depth(x)
    x = layers.Add(dtype=policy)([x, shortcut])
    return layers.ReLU(dtype=policy)(x)


def _shortcut(x: Any, filters: int, stride: int, policy: keras.DTypePolicy, kernels: Kernels) -> Any:
    if stride == 1 and x.shape[-1] == filters:
        return x
    if stride > 1:
        x = layers.AveragePooling2D(stride, padding="same", dtype=policy)(x)
    return _normalize(_convolve(x, filters, 1, 1, policy, kernels), policy)


def _convolve(
    x: Any, filters: int, size: int, stride: int, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    return Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=kernels.he(),
        dtype=policy,
    )(x)


def _normalize(x: Any, policy: keras.DTypePolicy) -> Any:
    return FusedBatchNormalization(momentum=_MOMENTUM, epsilon=1e-5, dtype=policy)(x)
