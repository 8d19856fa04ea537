"""Keras models for all families, with the preprocessing inside.

`build_model` takes a `ModelSpec`, the number of classes, the image size and a precision. Models map pixels
[batch, height, width, channels] in 0..255 to logits [batch, classes] in float32.
"""

from trainer.model.build import build_inference_model, build_model

__all__ = ["build_inference_model", "build_model"]
