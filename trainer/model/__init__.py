"""A `ModelSpec` to a Keras model with its preprocessing inside.

In: the spec, the number of classes, the image size and a precision. Out: a model from
pixels [batch, height, width, channels] in 0..255 to logits [batch, classes] in float32.
"""

from trainer.model.build import build_inference_model, build_model

__all__ = ["build_inference_model", "build_model"]
