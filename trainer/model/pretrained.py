"""Pretrained family: a backbone with published weights, and a new output layer.

The model maps pixels [batch, height, width, channels] in 0..255, of any size, to logits [batch, classes]. It
consists of two nested models: `backbone`, from pixels to features, and `head`, from features to logits.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers

from trainer.data.published import LITE0_NAME
from trainer.model.applications import application_features
from trainer.model.dropout import RowDropout
from trainer.model.efficientnet_lite import lite0_features
from trainer.model.head import class_logits
from trainer.model.initializers import Kernels
from trainer.model.stages import stages_of
from trainer.spec import PretrainedSpec

__all__ = [
    "BACKBONE", "HEAD", "backbone_of", "has_backbone", "head_of", "preprocessing_of", "pretrained_logits",
    "stages_of",
]  # fmt: skip

BACKBONE, HEAD = "backbone", "head"
_RESCALING = "rescaling"
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Means and standard deviations of red, green and blue in 0..255."""


def pretrained_logits(
    spec: PretrainedSpec, pixels: Any, class_count: int, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    """Return the logits [batch, classes] of `pixels`; the weights are randomly initialized."""
    backbone = build_backbone(spec.backbone, pixels.shape[-1], policy, kernels)
    head = _build_head(spec, backbone.output_shape[-1], class_count, kernels)
    return head(backbone(pixels))


def backbone_of(model: keras.Model) -> keras.Model:
    """Return the part of a pretrained model from pixels to features, float32 [batch, features]."""
    return _part(model, BACKBONE)


def preprocessing_of(backbone: keras.Model) -> str:
    """Return the scale and the offset of each channel in the backbone's preprocessing, as text."""
    rescaling = backbone.get_layer(_RESCALING)
    return f"{list(rescaling.scale)} {list(rescaling.offset)}"


def head_of(model: keras.Model) -> keras.Model:
    """Return the part of a pretrained model from features to logits, float32 [batch, classes]."""
    return _part(model, HEAD)


def has_backbone(model: keras.Model) -> bool:
    """Return whether the model is a pretrained one, or the backbone of one."""
    return model.name == BACKBONE or any(map(has_backbone, _nested(model)))


def _part(model: keras.Model, name: str) -> keras.Model:
    """Return the model called `name` in `model`, which has one more level if it averages mirror images."""
    parts = [layer for outer in (model, *_nested(model)) for layer in _nested(outer) if layer.name == name]
    return parts[0]


def _nested(model: keras.Model) -> list[keras.Model]:
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]


def build_backbone(name: str, channels: int, policy: keras.DTypePolicy, kernels: Kernels) -> keras.Model:
    """Return the network `name`, [batch, height, width, channels] to features, randomly initialized."""
    pixels = keras.Input((None, None, channels), name="pixels")
    prepared = _preprocessed(name, pixels)
    if name == LITE0_NAME:
        features = lite0_features(prepared, policy, kernels)
    else:
        features = application_features(name, pixels, prepared, policy, kernels)
    return keras.Model(pixels, features, name=BACKBONE)


def _build_head(spec: PretrainedSpec, width: int, class_count: int, kernels: Kernels) -> keras.Model:
    features = keras.Input((width,), name="features")
    x = RowDropout(spec.dropout, kernels.seed, dtype="float32")(features) if spec.dropout else features
    return keras.Model(features, class_logits(x, class_count, kernels), name=HEAD)


def _preprocessed(name: str, pixels: Any) -> Any:
    """Return pixels in the range that the network `name` was trained with, in float32.

    Grey images are repeated to three channels. Channels beyond the third are treated as red, green and blue
    again.
    """
    channels = pixels.shape[-1]
    if channels == 1:
        pixels = layers.Concatenate(dtype="float32", name="colours")([pixels] * 3)
        channels = 3
    means, deviations = _statistics(name)
    repeats = math.ceil(channels / 3)
    scale = [1 / each for each in deviations * repeats][:channels]
    offset = [-mean / each for mean, each in zip(means * repeats, deviations * repeats, strict=True)][
        :channels
    ]
    return layers.Rescaling(scale, offset=offset, dtype="float32", name=_RESCALING)(pixels)


def _statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if name.startswith(("efficientnetv2-b", "convnext")):
        return _IMAGENET
    if name == LITE0_NAME:
        return (127.0,) * 3, (128.0,) * 3
    middle = 128.0 if name.startswith("efficientnetv2") else 127.5
    return (middle,) * 3, (middle,) * 3
