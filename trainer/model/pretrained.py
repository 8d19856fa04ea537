"""Pretrained family: a backbone with published weights, and a new output layer.

The model maps pixels [batch, height, width, channels] in 0..255, of any size, to logits [batch, classes]. It
consists of two nested models: `backbone`, from pixels to features, and `head`, from features to logits.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from typing import Any

import keras
from keras import layers

from trainer.data.weights import LITE0_NAME
from trainer.model.applications import application_features
from trainer.model.dropout import RowDropout
from trainer.model.efficientnet_lite import lite0_features
from trainer.model.layers import Kernels, class_logits
from trainer.spec import PretrainedSpec

BACKBONE, HEAD = "backbone", "head"
_RESCALING = "rescaling"
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Means and standard deviations of red, green and blue in 0..255."""
_STEM_NAME = re.compile(r"stem|conv(_bn)?$|conv1_|convnext_[a-z]+_stem$")
_TOP_NAME = re.compile(r"top_|conv_1(_bn)?$|post_|.*_head_")
_STAGE_NAMES = (
    (re.compile(r"stage(\d+)_"), 0),
    (re.compile(r"block(\d+)[a-z]_"), 0),
    (re.compile(r"conv(\d+)_block"), -1),
    (re.compile(r"convnext_[a-z]+_stage_(\d+)_"), 1),
    (re.compile(r"convnext_[a-z]+_downsampling_block_(\d+)$"), 2),
)
"""Patterns with the stage number in a name, and the offset to a number that counts from the stem as 0."""
_MOBILENET_BLOCK = re.compile(r"expanded_conv_(\d*)")
_STATISTICS = ("moving_mean", "moving_variance")


def pretrained_logits(
    spec: PretrainedSpec, pixels: Any, class_count: int, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    """Return the logits [batch, classes] of `pixels`; the weights are randomly initialized."""
    backbone = build_backbone(spec.backbone, pixels.shape[-1], policy, kernels)
    head = _build_head(spec, backbone.output_shape[-1], class_count, kernels)
    return head(backbone(pixels))


def get_backbone(model: keras.Model) -> keras.Model:
    """Return the part of a pretrained model from pixels to features, float32 [batch, features]."""
    return _find_part(model, BACKBONE)


def preprocessing_of(backbone: keras.Model) -> str:
    """Return the scale and the offset of each channel in the backbone's preprocessing, as text."""
    rescaling = backbone.get_layer(_RESCALING)
    return f"{list(rescaling.scale)} {list(rescaling.offset)}"


def get_head(model: keras.Model) -> keras.Model:
    """Return the part of a pretrained model from features to logits, float32 [batch, classes]."""
    return _find_part(model, HEAD)


def has_backbone(model: keras.Model) -> bool:
    """Return whether the model is a pretrained one, or the backbone of one."""
    return model.name == BACKBONE or any(map(has_backbone, _nested(model)))


def stages_of(backbone: keras.Model) -> list[list[keras.Variable]]:
    """Return the weights of a backbone by depth, without moving statistics; the input side comes first.

    Layers are matched by their names in `lite0_features` and Keras. In most networks a stage has a single
    resolution. The first stage is the stem, and layers after the last block belong to the last stage. The
    result does not depend on whether layers are trainable or frozen.
    """
    strided = [
        _find_block(layer.name) for layer in backbone.layers
        if _MOBILENET_BLOCK.match(layer.name) and getattr(layer, "strides", 1) in (2, (2, 2))
    ]  # fmt: skip
    stages: dict[int, list[keras.Variable]] = {}
    last: list[keras.Variable] = []
    for layer in backbone.layers:
        weights = [weight for weight in layer.weights if weight.name not in _STATISTICS]
        if _TOP_NAME.match(layer.name):
            last += weights
        elif weights:
            stages.setdefault(_find_stage(layer.name, strided), []).extend(weights)
    ordered = [stages[index] for index in sorted(stages)]
    return [*ordered[:-1], ordered[-1] + last]


def _find_stage(name: str, strided: list[int]) -> int:
    if _STEM_NAME.match(name):
        return 0
    if _MOBILENET_BLOCK.match(name):
        return 1 + bisect_right(strided, _find_block(name))
    matches = ((pattern.match(name), offset) for pattern, offset in _STAGE_NAMES)
    return next(int(match[1]) + offset for match, offset in matches if match)


def _find_block(name: str) -> int:
    """Return the number of a MobileNetV3 block; the first has none in its name."""
    match = _MOBILENET_BLOCK.match(name)
    return int(match[1] or 0) if match else 0


def _find_part(model: keras.Model, name: str) -> keras.Model:
    """Return the model called `name` in `model`, which has one more level if it averages mirror images."""
    parts = [layer for outer in (model, *_nested(model)) for layer in _nested(outer) if layer.name == name]
    return parts[0]


def _nested(model: keras.Model) -> list[keras.Model]:
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]


def build_backbone(name: str, channels: int, policy: keras.DTypePolicy, kernels: Kernels) -> keras.Model:
    """Return the network `name`, [batch, height, width, channels] to features, randomly initialized."""
    pixels = keras.Input((None, None, channels), name="pixels")
    prepared = _preprocess(name, pixels)
    if name == LITE0_NAME:
        features = lite0_features(prepared, policy, kernels)
    else:
        features = application_features(name, pixels, prepared, policy, kernels)
    return keras.Model(pixels, features, name=BACKBONE)


def _build_head(spec: PretrainedSpec, width: int, class_count: int, kernels: Kernels) -> keras.Model:
    features = keras.Input((width,), name="features")
    x = RowDropout(spec.dropout, kernels.seed, dtype="float32")(features) if spec.dropout else features
    return keras.Model(features, class_logits(x, class_count, kernels), name=HEAD)


def _preprocess(name: str, pixels: Any) -> Any:
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
    scale = [1 / deviation for deviation in deviations * repeats][:channels]
    pairs = zip(means * repeats, deviations * repeats, strict=True)
    offset = [-mean / deviation for mean, deviation in pairs][:channels]
    return layers.Rescaling(scale, offset=offset, dtype="float32", name=_RESCALING)(pixels)


def _statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if name.startswith(("efficientnetv2-b", "convnext")):
        return _IMAGENET
    if name == LITE0_NAME:
        return (127.0,) * 3, (128.0,) * 3
    middle = 128.0 if name.startswith("efficientnetv2") else 127.5
    return (middle,) * 3, (middle,) * 3
