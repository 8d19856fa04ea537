"""Schemas of the networks trained from scratch: plain and residual."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.spec.checked import Blocks, Checked, Count, Filters, cross_check


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
            raise ValueError("filters and blocks need one number for each stage")
        return self
