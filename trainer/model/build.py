"""Factory for the models of all families.

The output of every model is one logit per class, so loss, metrics and export handle a single format.
"""

from __future__ import annotations

import keras

from trainer.model.airbench import airbench_logits
from trainer.model.dropout import number_dropouts
from trainer.model.features import MIRROR
from trainer.model.layers import Kernels
from trainer.model.plain import plain_logits
from trainer.model.pretrained import pretrained_logits
from trainer.model.residual import residual_logits
from trainer.spec import AirbenchSpec, ModelSpec, PlainSpec, PretrainedSpec, sides_of

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def build_model(
    spec: ModelSpec,
    class_count: int,
    image_size: int | tuple[int, int],
    precision: str = "float32",
    seed: int = 0,
    channels: int = 3,
) -> keras.Model:
    """Return an untrained model from images in 0..255 to logits [batch, classes].

    Images are [batch, height, width, channels], uint8 or float. `image_size` is one number for both sides, or
    height and width. `precision` is 'float32' or 'bfloat16', the dtype of the computation; the variables are
    always float32. All families but plain accept any image size after the model is built. `seed` determines
    the initial weights and the dropout.
    """
    policy = keras.DTypePolicy(PRECISIONS[precision])
    kernels = Kernels(seed)
    if isinstance(spec, PlainSpec):
        pixels = keras.Input((*sides_of(image_size), channels), name="pixels")
        logits = plain_logits(spec, pixels, class_count, policy, kernels)
    elif isinstance(spec, PretrainedSpec):
        pixels = keras.Input((None, None, channels), name="pixels")
        logits = pretrained_logits(spec, pixels, class_count, policy, kernels)
    else:
        pixels = keras.Input((None, None, channels), name="pixels")
        if isinstance(spec, AirbenchSpec):
            logits = airbench_logits(spec, pixels, class_count, policy, kernels)
        else:
            logits = residual_logits(spec, pixels, class_count, policy, kernels)
    model = keras.Model(pixels, logits, name=spec.family)
    number_dropouts(model)
    return model


def build_inference_model(
    spec: ModelSpec, class_count: int, image_size: int | tuple[int, int], channels: int = 3
) -> keras.Model:
    """Return the float32 model for inference, with the same weights in the same order as `build_model`.

    With `average_mirror` its logits are the mean of those of the image and of its mirror image.
    """
    model = build_model(spec, class_count, image_size, channels=channels)
    if not spec.average_mirror:
        return model
    pixels = keras.Input(model.input_shape[1:], name="pixels")
    mirrored = keras.layers.Lambda(lambda x: keras.ops.flip(x, axis=2), name=MIRROR)(pixels)
    logits = keras.layers.Average(name="logits")([model(pixels), model(mirrored)])
    return keras.Model(pixels, logits, name=f"{spec.family}_with_mirror")
