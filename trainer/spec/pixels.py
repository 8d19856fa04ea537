"""The form of the images that a network receives.

In: the settings of `DataSpec` that decide it. Out: a `PixelFormat`, the same for reading data, the exported
model and evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

PIXEL_SETTINGS = ("image_size", "channels", "resize", "interpolation", "crop_fraction")
"""The settings of `DataSpec` that decide how an image becomes pixels."""
_SMALLEST, _LARGEST = 8, 2048


class PixelFormat(NamedTuple):
    """How an image of any size becomes pixels; the settings are documented in `DataSpec`."""

    height: int
    width: int
    resize: str = "stretch"
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image's pixels: height, width and channels."""
        return self.height, self.width, self.channels


def sides_of(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of an image size, which is one number for both or [height, width]."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def format_size(image_size: int | Sequence[int]) -> str:
    """Return `224 px` or `160 x 224 px`."""
    height, width = sides_of(image_size)
    return f"{height} px" if height == width else f"{height} x {width} px"


def _checked_size(value: Any) -> int | tuple[int, int]:
    """Return an image size as one number where that says all. Raises ValueError."""
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and _SMALLEST <= side <= _LARGEST for side in sides):
        raise ValueError(f"must be one number or [height, width], each from {_SMALLEST} to {_LARGEST}")
    height, width = sides
    return height if height == width else (height, width)


ImageSize = Annotated[int | tuple[int, int], BeforeValidator(_checked_size)]
"""One number for height and width, or both of them."""
