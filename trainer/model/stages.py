"""Stages of a backbone, for training its layers by depth.

Layers are matched by the names of `lite0_features` and Keras.
"""

from __future__ import annotations

import re
from bisect import bisect_right

import keras

_FIRST = re.compile(r"stem|conv(_bn)?$|conv1_|convnext_[a-z]+_stem$")
_LAST = re.compile(r"top_|conv_1(_bn)?$|post_|.*_head_")
_NUMBERED = (
    (re.compile(r"stage(\d+)_"), 0),
    (re.compile(r"block(\d+)[a-z]_"), 0),
    (re.compile(r"conv(\d+)_block"), -1),
    (re.compile(r"convnext_[a-z]+_stage_(\d+)_"), 1),
    (re.compile(r"convnext_[a-z]+_downsampling_block_(\d+)$"), 2),
)
"""Patterns with the stage number in a name, and the offset to a number that counts from the stem as 0."""
_MOBILE = re.compile(r"expanded_conv_(\d*)")
_STATISTICS = ("moving_mean", "moving_variance")


def stages_of(backbone: keras.Model) -> list[list[keras.Variable]]:
    """Return the weights of a backbone by depth, without moving statistics; the input side comes first.

    In most networks a stage has a single resolution. The first stage is the stem, and layers after the last
    block belong to the last stage. The result does not depend on whether layers are trainable or frozen.
    """
    strided = [
        _block(layer.name) for layer in backbone.layers
        if _MOBILE.match(layer.name) and getattr(layer, "strides", 1) in (2, (2, 2))
    ]  # fmt: skip
    stages: dict[int, list[keras.Variable]] = {}
    last: list[keras.Variable] = []
    for layer in backbone.layers:
        weights = [each for each in layer.weights if each.name not in _STATISTICS]
        if _LAST.match(layer.name):
            last += weights
        elif weights:
            stages.setdefault(_stage(layer.name, strided), []).extend(weights)
    ordered = [stages[index] for index in sorted(stages)]
    return [*ordered[:-1], ordered[-1] + last]


def _stage(name: str, strided: list[int]) -> int:
    if _FIRST.match(name):
        return 0
    if _MOBILE.match(name):
        return 1 + bisect_right(strided, _block(name))
    found = ((pattern.match(name), offset) for pattern, offset in _NUMBERED)
    return next(int(match[1]) + offset for match, offset in found if match)


def _block(name: str) -> int:
    """Return the number of a MobileNetV3 block; the first has none in its name."""
    match = _MOBILE.match(name)
    return int(match[1] or 0) if match else 0
