"""Adaptation of pretrained RGB kernels to grey, RGBA or other channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def adapt_channels(kernel: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Return a convolution's `kernel`, [height, width, 3, filters], for images of `channels`, 1 or more.

    The rule is that of timm (`adapt_input_conv`). For grey it is the sum over the colours, whose response to
    a grey image equals that of the RGB kernel to the same image in RGB. Otherwise the colours are repeated in
    their order, times 3 / channels, so that the sum over equal channels stays the same. The result is
    [height, width, channels, filters]. Raises ValueError for a kernel that does not have 3 input channels.
    """
    if kernel.ndim != 4 or kernel.shape[2] != 3:
        raise ValueError(f"a kernel of RGB images is [height, width, 3, filters], not {kernel.shape}")
    if channels == 3:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.take(kernel, np.arange(channels) % 3, axis=2)
    return (repeated * (3 / channels)).astype(kernel.dtype)
