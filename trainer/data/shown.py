"""Conversion of images with any number of channels to RGB, for display and measurement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def as_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert images, uint8 [..., channels], to RGB uint8 [..., 3]; alpha is blended onto white."""
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    if pixels.shape[-1] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.int32)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
