"""Schema of the augmentation settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.spec.checked import Checked, Fraction, Positive, SettingError, cross_check


class CropSpec(Checked):
    """A random crop of each image, resized. Off by default.

    Scale and ratio are relative to the input of the network. A side is the shorter one.
    """

    scale: tuple[Fraction, Fraction] = Field((0.35, 1.0), strict=False)
    """Smallest and largest area of the crop, as a fraction of the image."""
    ratio: tuple[Positive, Positive] = Field((0.75, 1.3333), strict=False)
    """Smallest and largest width over height of the crop."""
    size: int | None = Field(None, ge=8, le=2048)
    """Side of the crop after resizing, in pixels; by default data.image_size."""
    first_size: int | None = Field(None, ge=8, le=2048)
    """Side of the crops at the beginning of training; they grow to size. Needs a network that takes any
    size."""
    whole_epochs: int = Field(0, ge=0, le=2**31 - 1)
    """Last epochs that see whole images of data.image_size, as evaluation does, instead of crops."""

    @cross_check
    def _ordered(self) -> CropSpec:
        if self.scale[0] > self.scale[1] or self.scale[1] == 0 or self.ratio[0] > self.ratio[1]:
            raise SettingError(
                "augment.crop.scale and augment.crop.ratio must be [smallest, largest].",
                "Put the smaller number first; the largest scale must be above 0.",
                f"scale {list(self.scale)}, ratio {list(self.ratio)}",
            )
        return self


class AugmentSpec(Checked):
    """Random changes of training images; all are off by default."""

    flip: Literal["none", "horizontal", "alternating", "both"] = "none"
    """Mirror images at random. alternating mirrors each image in every second epoch (Jordan 2024)."""
    crop: CropSpec | None = None
    """Random crops, resized."""
    translate_pixels: int = Field(0, ge=0, le=256)
    """Maximum shift in pixels in both directions, with a reflected border; not together with crop."""
    rotate_degrees: float = Field(0.0, ge=0.0, le=180.0)
    """Maximum rotation in degrees, in both directions."""
    brightness: Fraction = 0.0
    """Maximum change of brightness, uniform in plus or minus this value, where 1 is white."""
    contrast: Fraction = 0.0
    """Maximum change of contrast: a factor that is uniform in 1 plus or minus this value."""
    saturation: Fraction = 0.0
    """Maximum change of saturation: a factor that is uniform in 1 plus or minus this value."""
    hue: float = Field(0.0, ge=0.0, le=0.5)
    """Maximum rotation of the hue, in both directions, as a fraction of the colour circle."""
    noise: Fraction = 0.0
    """Maximum standard deviation of Gaussian noise, where 1 is white."""
    erase: Fraction = 0.0
    """Probability of random erasing: a grey rectangle (Zhong et al. 2017)."""
    mixup: Fraction = 0.0
    """Probability of mixup with the neighbouring image, labels too (Zhang et al. 2017)."""
    cutmix: Fraction = 0.0
    """Probability of CutMix with the neighbouring image, labels too (Yun et al. 2019)."""

    @property
    def changes_images(self) -> bool:
        """Whether any augmentation is on."""
        return self != AugmentSpec()

    @cross_check
    def _one_position(self) -> AugmentSpec:
        if self.translate_pixels and self.crop is not None:
            raise SettingError(
                "augment.translate_pixels cannot be combined with augment.crop, which already shifts images.",
                "Set augment.translate_pixels to 0, or augment.crop to null.",
                f"translate_pixels {self.translate_pixels}",
            )
        return self

    @cross_check
    def _one_mixture(self) -> AugmentSpec:
        if self.mixup + self.cutmix > 1.0:
            raise SettingError(
                "The sum of augment.mixup and augment.cutmix must be at most 1.",
                "Reduce one of them.",
                f"mixup {self.mixup:g}, cutmix {self.cutmix:g}",
            )
        return self
