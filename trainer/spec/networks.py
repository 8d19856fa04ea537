"""Schemas of the model families: plain, residual, airbench and pretrained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.spec.checked import Blocks, Checked, Count, Filters, SettingError, cross_check


class PlainSpec(Checked):
    """3 x 3 convolutions with ReLU and 2 x 2 max pooling, then dense layers."""

    family: Literal["plain"] = "plain"
    """Network family."""
    filters: tuple[Filters, ...] = Field((16, 32, 64), strict=False, min_length=1)
    """Filters of each convolution."""
    pool_last: bool = True
    """Pool after the last convolution too."""
    dense_units: tuple[Count, ...] = Field((), strict=False)
    """Units of each dense layer before the last layer."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout rate before the last layer."""
    binary_unit: bool = False
    """With two classes: one sigmoid unit instead of two softmax units (same loss, same gradients)."""
    average_mirror: bool = False
    """Average the logits of an image and of its mirror image, at twice the cost per prediction."""

    @property
    def pools(self) -> tuple[bool, ...]:
        """Whether each convolution is followed by pooling."""
        return (True,) * (len(self.filters) - 1) + (self.pool_last,)

    def last_side(self, side: int) -> int:
        """Return the side of the last feature map for images of `side` pixels; below 1 there is none."""
        for is_pooled in self.pools:
            side = (side - 2) // 2 if is_pooled else side - 2
        return side


class ResidualSpec(Checked):
    """A residual network with batch normalisation and global average pooling."""

    family: Literal["residual"] = "residual"
    """Network family."""
    stem_filters: Filters = 32
    """Filters of the first convolution."""
    stem_stride: int = Field(2, ge=1, le=4)
    """Stride of the first convolution; 1 for small images."""
    filters: tuple[Filters, ...] = Field((64, 128, 256), strict=False, min_length=1)
    """Filters of each stage; each stage halves height and width."""
    blocks: tuple[Blocks, ...] = Field((2, 2, 2), strict=False, min_length=1)
    """Residual blocks of each stage; as many numbers as filters."""
    dropout: float = Field(0.2, ge=0.0, lt=1.0)
    """Dropout rate before the last layer."""
    stochastic_depth: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability that the last block is skipped; it decreases linearly towards the first block."""
    average_mirror: bool = False
    """Average the logits of an image and of its mirror image, at twice the cost per prediction."""

    @cross_check
    def _stages(self) -> ResidualSpec:
        if len(self.filters) != len(self.blocks):
            raise SettingError(
                "model.filters and model.blocks must have the same length: one number for each stage.",
                "Set both.",
                f"{len(self.filters)} filters, {len(self.blocks)} blocks",
            )
        return self


class AirbenchSpec(Checked):
    """A network for fast training from scratch on small images (Jordan 2024, airbench94).

    A whitening layer, then groups of convolution, max pooling, batch normalisation and GELU.
    """

    family: Literal["airbench"] = "airbench"
    """Network family."""
    filters: tuple[Filters, ...] = Field((64, 256, 256), strict=False, min_length=1)
    """Filters of each group; each group halves height and width."""
    convolutions: int = Field(2, ge=2, le=3)
    """Convolutions of each group; the third one has an identity shortcut."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout rate before the last layer."""
    average_mirror: bool = False
    """Average the logits of an image and of its mirror image, at twice the cost per prediction."""

    @property
    def least_side(self) -> int:
        """Smallest side of an image in pixels, with which every group still has something to pool."""
        return int(2 ** len(self.filters)) + 1


DEFAULT_WEIGHTS, NO_WEIGHTS = "default", "none"
"""Keywords for `model.weights`, which is otherwise a path or URI."""
LEAST_SIDE = 32
"""Minimum side of an image in pixels: every backbone halves its input five times."""


class PretrainedSpec(Checked):
    """A backbone with ImageNet weights and a new last layer."""

    family: Literal["pretrained"] = "pretrained"
    """Network family."""
    backbone: Literal[
        "efficientnet-lite0",
        "efficientnetv2-b0",
        "efficientnetv2-b1",
        "efficientnetv2-b2",
        "efficientnetv2-b3",
        "efficientnetv2-s",
        "efficientnetv2-m",
        "efficientnetv2-l",
        "mobilenetv3-small",
        "mobilenetv3-large",
        "resnet50v2",
        "convnext-tiny",
        "convnext-small",
        "convnext-base",
    ] = "efficientnet-lite0"
    """Pretrained network without its last layer."""
    weights: str = Field(DEFAULT_WEIGHTS, min_length=1)
    """default, none, or the path, https:// or gs:// URI of a .weights.h5, .h5 or .keras file."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout rate before the last layer."""
    average_mirror: bool = False
    """Average the logits of an image and of its mirror image, at twice the cost per prediction."""
