"""Mapping of the published EfficientNet-Lite0 weights from PyTorch's names to layers of this package."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.model.efficientnet_lite import STAGES

Arrays = dict[str, np.ndarray[Any, Any]]
_PARTS = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
_PARTS |= {"project": ("_project_conv", "_bn2")}
_NORM = ("weight", "bias", "running_mean", "running_var")


def lite0_arrays(arrays: Arrays) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Return the arrays of each layer of `lite0_features`, in the order of its variables."""
    found = _pair(arrays, "stem", "_conv_stem", "_bn0") | _pair(arrays, "top", "_conv_head", "_bn1")
    index = 0
    for stage, (blocks, *_) in enumerate(STAGES, 1):
        for block in range(1, blocks + 1):
            for part, (convolution, norm) in _PARTS.items():
                before = f"_blocks.{index}."
                found |= _pair(
                    arrays, f"stage{stage}_block{block}_{part}", before + convolution, before + norm
                )
            index += 1
    return {name: values for name, values in found.items() if values}


def _pair(arrays: Arrays, name: str, convolution: str, norm: str) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Return the arrays of a convolution and of the normalization after it."""
    kernels = [arrays[key] for key in (f"{convolution}.weight",) if key in arrays]
    # PyTorch has [out, in, height, width]. Depthwise kernels have in = 1, and out is the input axis of Keras.
    axes = (2, 3, 0, 1) if name.endswith("depthwise") else (2, 3, 1, 0)
    return {
        f"{name}_conv": [each.transpose(axes) for each in kernels if each.ndim == len(axes)],
        f"{name}_norm": [arrays[f"{norm}.{each}"] for each in _NORM if f"{norm}.{each}" in arrays],
    }
