"""EfficientNet-Lite0 without its top layer (Liu 2020): inverted bottlenecks without squeeze-and-excitation.

It maps preprocessed pixels [batch, height, width, channels] to features [batch, 1280], float32. Padding,
epsilon and activation are those with which the published weights were trained.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from trainer.model.layers import Conv2D, FusedBatchNormalization, Kernels
from trainer.model.torch_file import Arrays

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel size, stride, expansion and filters of each stage."""
_STEM_FILTERS, _TOP_FILTERS = 32, 1280
_EPSILON = 1e-3
_MOMENTUM = 0.9
_PARTS = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
_PARTS |= {"project": ("_project_conv", "_bn2")}
_NORM_KEYS = ("weight", "bias", "running_mean", "running_var")


class _Builder:
    """Adds the layers of one network, in one precision."""

    def __init__(self, policy: keras.DTypePolicy, kernels: Kernels) -> None:
        self.policy, self.kernels = policy, kernels

    def convolve(self, x: Any, filters: int, size: int, stride: int, name: str) -> Any:
        """Return the convolution of `x`, normalized."""
        x = Conv2D(
            filters, size, strides=stride, padding="same", use_bias=False,
            kernel_initializer=self.kernels.he(), dtype=self.policy, name=f"{name}_conv",
        )(x)  # fmt: skip
        return self._normalize(x, name)

    def convolve_depthwise(self, x: Any, size: int, stride: int, name: str) -> Any:
        """Return the depthwise convolution of `x`, normalized and activated."""
        x = layers.DepthwiseConv2D(
            size, strides=stride, padding="same", use_bias=False,
            depthwise_initializer=self.kernels.he(), dtype=self.policy, name=f"{name}_conv",
        )(x)  # fmt: skip
        return self.activate(self._normalize(x, name), name)

    def activate(self, x: Any, name: str) -> Any:
        """Return `x` clipped to 0..6."""
        return layers.ReLU(6.0, dtype=self.policy, name=f"{name}_activation")(x)

    def add(self, x: Any, shortcut: Any, name: str) -> Any:
        """Return the sum of a block's branch and its input."""
        return layers.Add(dtype=self.policy, name=f"{name}_add")([x, shortcut])

    def _normalize(self, x: Any, name: str) -> Any:
        return FusedBatchNormalization(_MOMENTUM, _EPSILON, dtype=self.policy, name=f"{name}_norm")(x)


def lite0_features(pixels: Any, policy: keras.DTypePolicy, kernels: Kernels) -> Any:
    """Return the pooled features, float32 [batch, 1280], of `pixels` that are preprocessed for Lite0."""
    builder = _Builder(policy, kernels)
    x = builder.activate(builder.convolve(pixels, _STEM_FILTERS, 3, 2, "stem"), "stem")
    for stage, (blocks, size, stride, expansion, filters) in enumerate(STAGES, 1):
        for block in range(blocks):
            name = f"stage{stage}_block{block + 1}"
            x = _block(builder, x, size, stride if block == 0 else 1, expansion, filters, name)
    x = builder.activate(builder.convolve(x, _TOP_FILTERS, 1, 1, "top"), "top")
    return layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)


def _block(builder: _Builder, x: Any, size: int, stride: int, expansion: int, filters: int, name: str) -> Any:
    shortcut = x
    if expansion > 1:
        x = builder.convolve(x, x.shape[-1] * expansion, 1, 1, f"{name}_expand")
        x = builder.activate(x, f"{name}_expand")
    x = builder.convolve_depthwise(x, size, stride, f"{name}_depthwise")
    x = builder.convolve(x, filters, 1, 1, f"{name}_project")
    return builder.add(x, shortcut, name) if stride == 1 and shortcut.shape[-1] == filters else x


def lite0_arrays(arrays: Arrays) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Return the arrays of each layer of `lite0_features`, in the order of its variables.

    `arrays` are the published weights, with the names of PyTorch.
    """
    layer_arrays = _convert_pair(arrays, "stem", "_conv_stem", "_bn0")
    layer_arrays |= _convert_pair(arrays, "top", "_conv_head", "_bn1")
    index = 0
    for stage, (blocks, *_) in enumerate(STAGES, 1):
        for block in range(1, blocks + 1):
            for part, (convolution, norm) in _PARTS.items():
                name, prefix = f"stage{stage}_block{block}_{part}", f"_blocks.{index}."
                layer_arrays |= _convert_pair(arrays, name, prefix + convolution, prefix + norm)
            index += 1
    return {name: values for name, values in layer_arrays.items() if values}


def _convert_pair(
    arrays: Arrays, name: str, convolution: str, norm: str
) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Return the arrays of a convolution and of the normalization after it."""
    kernels = [arrays[key] for key in (f"{convolution}.weight",) if key in arrays]
    # PyTorch has [out, in, height, width]. Depthwise kernels have in = 1, and out is the input axis of Keras.
    axes = (2, 3, 0, 1) if name.endswith("depthwise") else (2, 3, 1, 0)
    return {
        f"{name}_conv": [kernel.transpose(axes) for kernel in kernels if kernel.ndim == len(axes)],
        f"{name}_norm": [arrays[f"{norm}.{key}"] for key in _NORM_KEYS if f"{norm}.{key}" in arrays],
    }
