"""Perceptual hashes of images: 64 bits that change little when an image is resized or re-encoded.

Two images are compared by the number of different bits, for example
`np.bitwise_count(first ^ second)`, in 0..64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

_SIDE, _LOW = 32, 8
_CUT = 0.05
"""Share of both sides that the crops lack."""
CROPS = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
"""Position of each crop: the shares of what it lacks that are cut off on the left and at the top."""
_MIRROR = np.where(np.arange(_LOW) % 2, -1.0, 1.0)
"""Mirroring changes the sign of the coefficients of odd horizontal frequency."""
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)


class Hashes(NamedTuple):
    """Hashes of one image, each in 0..2**64 - 1."""

    whole: int
    mirrored: int
    """Of the image mirrored left to right."""
    crops: list[int]
    """Of the crops at `CROPS` with 0.95 of both sides: near `whole` of a copy that was cropped."""


def hash_image(image: Image.Image) -> Hashes:
    """Return the perceptual hashes of an image of mode L."""
    width, height = image.size
    whole = _low_frequencies(image, (0, 0, width, height))
    crops = [
        (
            left * _CUT * width,
            top * _CUT * height,
            (1 - (1 - left) * _CUT) * width,
            (1 - (1 - top) * _CUT) * height,
        )
        for left, top in CROPS
    ]
    return Hashes(
        _to_bits(whole),
        _to_bits(whole * _MIRROR),
        [_to_bits(_low_frequencies(image, box)) for box in crops],
    )


def _low_frequencies(
    image: Image.Image, box: tuple[float, float, float, float] | None
) -> NDArray[np.float64]:
    """Return the 8 x 8 lowest coefficients of the DCT of a part of the image, resized to 32 x 32."""
    from PIL import Image
    from scipy import fft

    small = np.asarray(
        image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0), np.float64
    )
    return np.asarray(fft.dctn(small, type=2)[:_LOW, :_LOW])


def _to_bits(coefficients: NDArray[np.float64]) -> int:
    """Return one bit for each coefficient: whether it is above the median, as imagehash's `phash`."""
    is_above = coefficients.ravel() > np.median(coefficients)
    return int(np.bitwise_or.reduce(np.where(is_above, _BITS, np.uint64(0))))
