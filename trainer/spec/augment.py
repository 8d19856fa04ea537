"""Augmentation as frozen, validated values.

In: plain mappings. Out: an `AugmentSpec`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.spec.checked import Checked, Fraction, Positive, cross_check


class CropSpec(Checked):
    """A random part of each image, resized: scale is its area, ratio its width over its height.

    Both are relative to the image that the network sees, and a side is the shorter one.
    """

    scale: tuple[Fraction, Fraction] = Field((0.35, 1.0), strict=False)
    ratio: tuple[Positive, Positive] = Field((0.75, 1.3333), strict=False)
    size: int | None = Field(None, ge=8, le=2048)
    """The side of the crop after resizing, in pixels; the image size if not given."""
    first_size: int | None = Field(None, ge=8, le=2048)
    """Training starts with crops of this side and grows to `size`; needs the residual family."""
    whole_epochs: int = Field(0, ge=0, le=2**31 - 1)
    """So many last epochs see whole images of data.image_size, as evaluation does, instead of crops."""

    @cross_check
    def _ordered(self) -> CropSpec:
        if self.scale[0] > self.scale[1] or self.scale[1] == 0 or self.ratio[0] > self.ratio[1]:
            raise ValueError("scale and ratio are [smallest, largest], and the largest scale is above 0")
        return self


class AugmentSpec(Checked):
    """Random changes to training images; all off by default."""

    flip: Literal["none", "horizontal", "alternating", "both"] = "none"
    """alternating mirrors every image in each second epoch, half of them in the first (Jordan 2024)."""
    crop: CropSpec | None = None
    translate_pixels: int = Field(0, ge=0, le=256)
    """Moved by up to this many pixels up or down and left or right, the border reflected; not with crop."""
    rotate_degrees: float = Field(0.0, ge=0.0, le=180.0)
    brightness: Fraction = 0.0
    """Added to all pixels: uniform in plus or minus this, 1 being white."""
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: float = Field(0.0, ge=0.0, le=0.5)
    """Turned by up to this share of the colour circle."""
    noise: Fraction = 0.0
    """Standard deviation of Gaussian noise is uniform in 0 to this, 1 being white."""
    erase: Fraction = 0.0
    """The probability that a random rectangle is blanked."""
    mixup: Fraction = 0.0
    """The probability that an image is blended with its neighbour, labels too (Zhang et al. 2017)."""
    cutmix: Fraction = 0.0
    """The probability that a square of an image is its neighbour's, labels too (Yun et al. 2019)."""

    @property
    def changes_images(self) -> bool:
        """Whether any of the changes is on."""
        return self != AugmentSpec()

    @cross_check
    def _one_position(self) -> AugmentSpec:
        if self.translate_pixels and self.crop is not None:
            raise ValueError("a crop already moves the image: leave translate_pixels at 0 or crop out")
        return self

    @cross_check
    def _one_mixture(self) -> AugmentSpec:
        if self.mixup + self.cutmix > 1.0:
            raise ValueError(
                "an image is mixed in one way at most: mixup and cutmix together can't be above 1"
            )
        return self
