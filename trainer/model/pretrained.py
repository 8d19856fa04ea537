"""The pretrained family: a backbone with published weights, and a new last layer.

In: pixels [batch, height, width, channels] in 0..255, of any size. Out: logits [batch, classes]. The model is
two nested models: `backbone`, from pixels to features, and `head`, from features to logits.
"""

from __future__ import annotations

from typing import Any

import keras

from trainer.model.efficientnet_lite import lite0_features
from trainer.model.head import class_logits
from trainer.model.kernels import Kernels
from trainer.model.masks import RowDropout
from trainer.spec import PretrainedSpec

BACKBONE, HEAD = "backbone", "head"


def pretrained_logits(
    spec: PretrainedSpec, pixels: Any, class_count: int, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    """Return the logits [batch, classes] of `pixels`; the weights are fresh."""
    backbone = _build_backbone(spec.backbone, pixels.shape[-1], policy, kernels)
    head = _build_head(spec, backbone.output_shape[-1], class_count, kernels)
    return head(backbone(pixels))


def backbone_of(model: keras.Model) -> keras.Model:
    """Return the part of a pretrained model from pixels to features, float32 [batch, features]."""
    return model.get_layer(BACKBONE)


def head_of(model: keras.Model) -> keras.Model:
    """Return the part of a pretrained model from features to logits, float32 [batch, classes]."""
    return model.get_layer(HEAD)


def has_backbone(model: keras.Model) -> bool:
    """Return whether the model is a pretrained one, or the backbone of one."""
    return model.name == BACKBONE or any(
        has_backbone(layer) for layer in model.layers if isinstance(layer, keras.Model)
    )


def stages_of(backbone: keras.Model) -> list[list[keras.Variable]]:
    """Return the trainable variables of a backbone by depth, those next to the pixels first."""
    stages: dict[str, list[keras.Variable]] = {}
    for layer in backbone.layers:
        if layer.trainable_variables:
            stages.setdefault(layer.name.partition("_")[0], []).extend(layer.trainable_variables)
    return list(stages.values())


def _build_backbone(name: str, channels: int, policy: keras.DTypePolicy, kernels: Kernels) -> keras.Model:
    pixels = keras.Input((None, None, channels), name="pixels")
    return keras.Model(pixels, lite0_features(pixels, policy, kernels), name=BACKBONE)


def _build_head(spec: PretrainedSpec, width: int, class_count: int, kernels: Kernels) -> keras.Model:
    features = keras.Input((width,), name="features")
    x = RowDropout(spec.dropout, kernels.seed, dtype="float32")(features) if spec.dropout else features
    return keras.Model(features, class_logits(x, class_count, kernels), name=HEAD)
