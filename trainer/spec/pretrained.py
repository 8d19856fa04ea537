"""Schema of the pretrained model family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.spec.checked import Checked

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
