"""Noise statistics of one image: the high-pass residual at native size.

The statistics are of the diagonal coefficients of a Haar wavelet, where noise is strong and edges are weak
(Donoho and Johnstone 1994), of isolated pixels and of the 8 x 8 grid of JPEG. Resizing and compression
remove the noise of the sensor, so they describe the processing of a file rather than its camera.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

SCALES, CHANNELS = 3, ("luma", "blue-yellow", "red-green")
NOISE_NAMES = (
    *(f"sigma of {channel} at scale {scale}" for channel in CHANNELS for scale in range(1, SCALES + 1)),
    *(f"kurtosis of {channel}" for channel in CHANNELS),
    "isolated pixels",
    "blockiness",
)
"""Names of the noise statistics, in the order of their columns."""
_MAX_SIDE = 512
"""Larger images are measured in the centre."""
_MIN_SIDE = 16
_GRID = 8
_SPIKE = 40
"""Minimum difference of an isolated pixel from all four neighbours, of 255."""
_TO_SIGMA = 0.6745
"""Median of the absolute values of a standard normal distribution."""


def measure_noise(pixels: NDArray[np.uint8]) -> Floats:
    """Return the noise statistics of an image, uint8 [h, w, 3], as float32 [len(NOISE_NAMES)].

    sigma: median of the absolute diagonal coefficients / 0.6745, of 255; scale 1 is single pixels. kurtosis:
    of the coefficients at scale 1, 3 for Gaussian noise. isolated pixels: share in 0..1 of values
    that differ by more than 40 of 255 from all four neighbours, in the same direction. blockiness: mean
    difference across the strongest boundary of the 8 x 8 grid, divided by the mean of the others; 1 for no
    grid. All are NaN for images with a side below 16.
    """
    pixels = _centre(pixels)
    if min(pixels.shape[:2]) < _MIN_SIDE:
        return np.full(len(NOISE_NAMES), np.nan, np.float32)
    planes = np.moveaxis(pixels, -1, 0).astype(np.float32, order="C")
    red, green, blue = planes
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    opponents = (luma, 0.5 * blue - 0.25 * (red + green), 0.5 * (red - green))
    statistics = [_haar_statistics(channel) for channel in opponents]
    sigmas = [sigma for sigmas, _ in statistics for sigma in sigmas]
    kurtoses = [kurtosis for _, kurtosis in statistics]
    return np.array([*sigmas, *kurtoses, isolated_share(pixels), blockiness(luma)], np.float32)


def _centre(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    top, left = max(0, height - _MAX_SIDE) // 2, max(0, width - _MAX_SIDE) // 2
    return pixels[top : top + _MAX_SIDE, left : left + _MAX_SIDE]


def _haar_statistics(channel: Floats) -> tuple[list[float], float]:
    """Return sigma at each scale, and the kurtosis at the first."""
    sigmas: list[float] = []
    kurtosis = 3.0
    for scale in range(SCALES):
        channel = channel[: channel.shape[0] // 2 * 2, : channel.shape[1] // 2 * 2]
        upper, lower = channel[0::2], channel[1::2]
        difference, total = upper - lower, upper + lower
        diagonal = (difference[:, 0::2] - difference[:, 1::2]) / 2
        channel = (total[:, 0::2] + total[:, 1::2]) / 2
        sigmas.append(float(np.median(np.abs(diagonal))) / _TO_SIGMA)
        if scale == 0:
            squares = diagonal * diagonal
            mean = float(squares.mean())
            kurtosis = float(np.mean(squares * squares)) / mean**2 if mean > 1e-6 else 3.0
    return sigmas, kurtosis


def isolated_share(pixels: NDArray[np.uint8]) -> float:
    """Return the share in 0..1 of isolated bright or dark values in an image, uint8 [h, w, 3]."""
    middle = pixels[1:-1, 1:-1]
    above, below, left, right = pixels[:-2, 1:-1], pixels[2:, 1:-1], pixels[1:-1, :-2], pixels[1:-1, 2:]
    highest = np.maximum(np.maximum(above, below), np.maximum(left, right))
    lowest = np.minimum(np.minimum(above, below), np.minimum(left, right))
    # Differences of uint8 that cannot be negative; wider types take five times as long.
    is_bright = np.maximum(middle, highest) - highest > _SPIKE
    is_isolated = is_bright | (lowest - np.minimum(middle, lowest) > _SPIKE)
    return np.count_nonzero(is_isolated) / is_isolated.size


def blockiness(luma: Floats) -> float:
    """Return the strength of the 8 x 8 grid in an image, float32 [h, w]; 1 for none.

    Of both directions together; the phase of the grid is unknown, because images are cropped and rotated.
    """
    strengths = []
    for differences in (
        np.abs(np.diff(luma, axis=1)).mean(axis=0),
        np.abs(np.diff(luma, axis=0)).mean(axis=1),
    ):
        whole = differences[: len(differences) // _GRID * _GRID].reshape(-1, _GRID)
        phases = whole.mean(axis=0) + 0.1
        strongest = int(phases.argmax())
        strengths.append(phases[strongest] / np.delete(phases, strongest).mean())
    return float(np.mean(strengths))
