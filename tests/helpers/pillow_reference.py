"""Pillow as the reference for decoded pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from helpers.image_kinds import Pixels


def reference(data: bytes) -> Pixels:
    """Return Pillow's pixels as RGB: upright, alpha composited over white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def assert_close(actual: Pixels, expected: Pixels, tolerance: int) -> None:
    assert actual.dtype == np.uint8
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= tolerance
