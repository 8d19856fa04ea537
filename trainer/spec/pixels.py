"""Pixel format of the network input, shared by data loading, the exported model and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from trainer.spec.denoise import DenoiseSpec

PIXEL_SETTINGS = ("image_size", "channels", "resize", "interpolation", "crop_fraction", "denoise")
"""Settings of `DataSpec` that determine how an image is converted to pixels."""
_SMALLEST, _LARGEST = 8, 2048


class PixelFormat(NamedTuple):
    """Conversion of an image of any size to pixels; the settings are documented in `DataSpec`."""

    height: int
    width: int
    resize: str = "stretch"
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0
    channels: int = 3
    denoise: DenoiseSpec | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image: (height, width, channels)."""
        return self.height, self.width, self.channels


def sides_of(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of an image size, which is one number for both or [height, width]."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def format_size(image_size: int | Sequence[int]) -> str:
    """Return `224 px` or `160 x 224 px`."""
    height, width = sides_of(image_size)
    return f"{height} px" if height == width else f"{height} x {width} px"


def _checked_size(value: Any) -> int | tuple[int, int]:
    """Validate an image size; a square one becomes a single number. Raises ValueError."""
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and _SMALLEST <= side <= _LARGEST for side in sides):
        raise ValueError(
            f"Input should be one number or [height, width], each from {_SMALLEST} to {_LARGEST}"
        )
    height, width = sides
    return height if height == width else (height, width)


ImageSize = Annotated[int | tuple[int, int], BeforeValidator(_checked_size)]
"""One number for height and width, or [height, width]."""
