"""Odd images, by their measures: blank, dark, bright, blurred, tiny, elongated or turned by EXIF.

An absolute limit names images that are of no use to anyone. A relative limit names outliers within the data
set, so that not all images of a data set of night scenes are named. Outliers are found by the modified
z-score with median and MAD (Iglewicz and Hoaglin 1993).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.audit.measures import Measures

Floats = NDArray[np.floating[Any]]
Kind = Literal[
    "unreadable", "blank", "nearly uniform", "dark", "bright", "blurred", "tiny", "elongated", "turned"
]

_TO_SIGMA = 1.4826
"""Ratio of the standard deviation and the MAD of a normal distribution."""
_SCORE = 3.5
"""Minimum modified z-score of an outlier, the usual one."""
_LOW_SCORE = 2.5
"""Minimum modified z-score of an image that is also beyond an absolute limit."""
_MIN_IMAGES = 20
"""Minimum number of images to speak of outliers."""
_BLANK_CONTRAST, _BLANK_SHARE = 0.01, 0.99
_UNIFORM_CONTRAST, _UNIFORM_SHARE = 0.04, 0.80
_BLACK, _WHITE = 0.03, 0.97
_DARK, _BRIGHT = 0.15, 0.85
_BLURRED = 25.0
_TINY_SIDE, _SMALL_SIDE = 16, 64
_ELONGATED, _LONG = 5.0, 2.5


class OddImage(NamedTuple):
    """One finding about one image."""

    row: int
    """Number of the image in the measures."""
    kind: Kind
    sentence: str
    """For a user, with the measured value."""


def find_odd_images(measures: Measures) -> list[OddImage]:
    """Return the odd images by row, with one finding for each kind that applies.

    An image has at most one of the kinds unreadable, blank, dark, bright, nearly uniform and blurred, in this
    order, because each of them explains the following ones.
    """
    odd: dict[int, OddImage] = {}
    for find in (_find_unreadable, _find_blank, _find_by_brightness, _find_nearly_uniform, _find_blurred):
        odd = {image.row: image for image in find(measures)} | odd
    others = [*_find_by_size(measures), *_find_turned(measures)]
    return sorted([*odd.values(), *others], key=lambda image: image.row)


def robust_scores(values: Floats) -> NDArray[np.float64]:
    """Return the modified z-score of each value, float64 [N]: the distance from the median in units of the
    MAD, scaled to the standard deviation of a normal distribution.

    NaN where the value is NaN; all are 0 with fewer than 20 values. A MAD of 0 is replaced by the mean
    absolute deviation, as Iglewicz and Hoaglin advise; if that is 0 too, all scores are 0.
    """
    numbers = np.asarray(values, np.float64)
    known = numbers[np.isfinite(numbers)]
    if len(known) < _MIN_IMAGES:
        return np.where(np.isfinite(numbers), 0.0, np.nan)
    distances = np.abs(known - np.median(known))
    spread = _TO_SIGMA * float(np.median(distances)) or 1.2533 * float(distances.mean())
    return (numbers - np.median(known)) / spread if spread else np.where(np.isfinite(numbers), 0.0, np.nan)


def _rows(mask: NDArray[np.bool_]) -> list[int]:
    return [int(row) for row in np.flatnonzero(mask)]


def _find_unreadable(measures: Measures) -> list[OddImage]:
    return [
        OddImage(row, "unreadable", "The image cannot be decoded.") for row in _rows(~measures.is_readable)
    ]


def _find_blank(measures: Measures) -> list[OddImage]:
    is_blank = (measures.contrast < _BLANK_CONTRAST) | (measures.flat_share > _BLANK_SHARE)
    return [
        OddImage(row, "blank", f"{measures.flat_share[row]:.0%} of the pixels have the same grey value.")
        for row in _rows(is_blank)
    ]


def _find_by_brightness(measures: Measures) -> list[OddImage]:
    brightness, usual = measures.brightness, _median(measures.brightness)
    scores = robust_scores(brightness)
    is_dark = (brightness < _BLACK) | ((brightness < _DARK) & (scores < -_LOW_SCORE))
    is_bright = (brightness > _WHITE) | ((brightness > _BRIGHT) & (scores > _LOW_SCORE))
    kinds: tuple[tuple[Kind, NDArray[np.bool_]], ...] = (("dark", is_dark), ("bright", is_bright))
    return [
        OddImage(row, kind, f"Brightness {brightness[row]:.2f}; the median of the images is {usual:.2f}.")
        for kind, mask in kinds
        for row in _rows(mask)
    ]


def _find_nearly_uniform(measures: Measures) -> list[OddImage]:
    """Return outliers with low contrast, and those of which most pixels have the same grey value."""
    contrast, share = measures.contrast, measures.flat_share
    scores = robust_scores(np.log(np.maximum(contrast, 1e-3)))
    is_uniform = (contrast < _UNIFORM_CONTRAST) & (scores < -_LOW_SCORE)
    is_uniform |= (share > _UNIFORM_SHARE) & (robust_scores(share) > _SCORE)
    usual = _median(contrast)
    return [
        OddImage(
            row,
            "nearly uniform",
            f"Contrast {contrast[row]:.2f}, the median of the images is {usual:.2f}; "
            f"{share[row]:.0%} of the pixels have the same grey value.",
        )
        for row in _rows(is_uniform)
    ]


def _find_blurred(measures: Measures) -> list[OddImage]:
    """Return outliers in log sharpness that are also below an absolute limit, which sharp images exceed."""
    sharpness, usual = measures.sharpness, _median(measures.sharpness)
    scores = robust_scores(np.log(np.maximum(sharpness, 1e-3)))
    is_blurred = (sharpness < _BLURRED) & (scores < -_LOW_SCORE)
    return [
        OddImage(
            row,
            "blurred",
            f"Variance of the Laplacian {sharpness[row]:.0f}; the median of the images is {usual:.0f}.",
        )
        for row in _rows(is_blurred)
    ]


def _median(values: Floats) -> float:
    """Return the median of the values that are not NaN, NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _find_by_size(measures: Measures) -> list[OddImage]:
    """Return images with a very short side, and with an extreme aspect ratio."""
    width, height = measures.width, measures.height
    short, ratio = np.minimum(width, height), np.maximum(width, height) / np.minimum(width, height)
    short_scores, ratio_scores = robust_scores(np.log(short)), robust_scores(np.log(ratio))
    is_tiny = (short < _TINY_SIDE) | ((short < _SMALL_SIDE) & (short_scores < -_SCORE))
    is_elongated = (ratio > _ELONGATED) | ((ratio > _LONG) & (ratio_scores > _SCORE))
    size = [f"{width[row]:.0f} x {height[row]:.0f} pixels" for row in range(len(measures))]
    tiny = [OddImage(row, "tiny", f"{size[row]}.") for row in _rows(is_tiny)]
    return tiny + [
        OddImage(row, "elongated", f"{size[row]}, an aspect ratio of {ratio[row]:.1f} to 1.")
        for row in _rows(is_elongated)
    ]


def _find_turned(measures: Measures) -> list[OddImage]:
    orientation = measures.orientation
    return [
        OddImage(
            row,
            "turned",
            f"EXIF orientation {orientation[row]}: decoding turns or mirrors the image accordingly. "
            "Other programs may ignore the orientation.",
        )
        for row in _rows(orientation > 1)
    ]
