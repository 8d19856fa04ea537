"""Color jitter: brightness, contrast, saturation and hue in one matrix and one offset per image."""

from __future__ import annotations

import math

import tensorflow as tf

# Luma of ITU-R BT.601, which JPEG uses.
_LUMA = (0.299, 0.587, 0.114)
# RGB to YIQ (NTSC); hue is the angle in the I-Q plane.
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def change_colors(images: tf.Tensor, brightness: tf.Tensor, contrast: tf.Tensor, saturation: tf.Tensor,
                  hue: tf.Tensor) -> tf.Tensor:  # fmt: skip
    """Return images with changed colours, float32 [batch, height, width, 3 or 1] in 0..255.

    `images` have the same shape and range. All other arguments are float32 [batch]: `brightness` is added (1
    is white), `contrast` and `saturation` multiply the distance to the image's mean grey and to the pixel's
    own grey, and `hue` rotates the I-Q plane of YIQ (1 is a full turn). Together they are one 3 x 3 matrix
    and one offset per image. Saturation and hue of grey images are not changed.
    """
    matrix, luma = contrast[:, None, None], tf.constant((1.0,))
    if images.shape[-1] == 3:
        matrix *= tf.matmul(_saturation_matrix(saturation), _hue_matrix(hue))
        luma = tf.constant(_LUMA)
    grey = tf.reduce_mean(tf.tensordot(images, luma, 1), axis=[1, 2])
    offset = (1.0 - contrast) * grey + 255.0 * brightness
    changed = tf.einsum("bij,bhwj->bhwi", matrix, images) + offset[:, None, None, None]
    return tf.clip_by_value(changed, 0.0, 255.0)


def _saturation_matrix(saturation: tf.Tensor) -> tf.Tensor:
    grey = tf.tile(tf.constant(_LUMA)[None, None, :], [1, 3, 1])
    factor = saturation[:, None, None]
    return factor * tf.eye(3)[None] + (1.0 - factor) * grey


def _hue_matrix(hue: tf.Tensor) -> tf.Tensor:
    angle = 2.0 * math.pi * hue
    cos, sin, one, zero = tf.cos(angle), tf.sin(angle), tf.ones_like(hue), tf.zeros_like(hue)
    turn = tf.reshape(tf.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1), [-1, 3, 3])
    to_yiq = tf.constant(_TO_YIQ)
    return tf.linalg.inv(to_yiq)[None] @ turn @ to_yiq[None]
