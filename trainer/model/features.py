"""Features of a model: the input of its output layer, float32 [batch, width]."""

from __future__ import annotations

import keras

from trainer.model.pretrained import get_backbone, get_head, has_backbone

MIRROR = "mirror"
"""Name of the layer that mirrors the images of a model with `average_mirror`."""


def build_feature_model(model: keras.Model) -> keras.Model:
    """Return a model from pixels to (features, logits) that shares the weights of `model`.

    The logits are those of `model`, an inference model of any family. With `average_mirror` the features are
    those of the image itself, without its mirror image.
    """
    is_averaged = any(layer.name == MIRROR for layer in model.layers)
    network = (
        next(layer for layer in model.layers if isinstance(layer, keras.Model)) if is_averaged else model
    )
    both = _split_network(network)
    if not is_averaged:
        return both
    pixels = keras.Input(model.input_shape[1:], name="pixels")
    features, logits = both(pixels)
    _, mirrored_logits = both(model.get_layer(MIRROR)(pixels))
    averaged = keras.layers.Average(name="averaged_logits")([logits, mirrored_logits])
    return keras.Model(pixels, [features, averaged], name="features_and_logits")


def _split_network(network: keras.Model) -> keras.Model:
    if has_backbone(network):
        pixels = keras.Input(network.input_shape[1:], name="pixels")
        features = get_backbone(network)(pixels)
        return keras.Model(pixels, [features, get_head(network)(features)], name="features_and_logits")
    output_layer = [layer for layer in network.layers if isinstance(layer, keras.layers.Dense)][-1]
    return keras.Model(
        network.inputs[0], [output_layer.input, network.outputs[0]], name="features_and_logits"
    )
