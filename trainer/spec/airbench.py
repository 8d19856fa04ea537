"""Schema of the airbench model family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.spec.checked import Checked, Filters


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
