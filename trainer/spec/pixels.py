"""The form of the images that a network receives.

In: the settings of `DataSpec` that decide it. Out: a `PixelFormat`, the same for reading data, the exported
model and evaluation.
"""

from __future__ import annotations

from typing import NamedTuple

PIXEL_SETTINGS = ("image_size", "resize", "interpolation", "crop_fraction")
"""The settings of `DataSpec` that decide how an image becomes pixels."""


class PixelFormat(NamedTuple):
    """How an image of any size becomes pixels; the settings are documented in `DataSpec`."""

    height: int
    width: int
    resize: str = "stretch"
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image's pixels: height, width and channels."""
        return self.height, self.width, 3
