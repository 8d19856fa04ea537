"""Pretrained kernels for images of other channels than RGB.

In: the kernel of a network's first convolution. Out: the same for grey or RGBA images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def adapt_channels(kernel: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Return a convolution's `kernel`, [height, width, 3, filters], for images of `channels`, 1 or more.

    As timm does (`adapt_input_conv`): for grey the sum over the colours, which answers to a grey image as the
    RGB kernel to the same image in RGB; for others the colours repeated in their order, times 3 / channels,
    so that the sum over equal channels stays the same. The result is [height, width, channels, filters].
    Raises ValueError for a kernel of other channels than 3.
    """
    if kernel.ndim != 4 or kernel.shape[2] != 3:
        raise ValueError(f"a kernel of RGB images is [height, width, 3, filters], not {kernel.shape}")
    if channels == 3:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.take(kernel, np.arange(channels) % 3, axis=2)
    return (repeated * (3 / channels)).astype(kernel.dtype)
