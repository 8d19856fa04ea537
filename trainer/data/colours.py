"""Conversion between greyscale, RGB and RGBA, in graph operations.

All images are uint8 pixels from a decoder, except for the premultiplied ones, which are float32.
"""

from __future__ import annotations

import tensorflow as tf

_LUMA = (19595, 38470, 7471)
"""ITU-R BT.601 in 65,536ths, as in Pillow; grey pixels keep their exact value."""


def from_rgb(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Convert RGB uint8 [H, W, 3] to uint8 [H, W, channels]: greyscale, RGB, or RGBA with opaque alpha."""
    if channels == 1:
        luma = tf.tensordot(tf.cast(image, tf.int32), tf.constant(_LUMA), 1)
        return tf.cast((luma + (1 << 15)) // (1 << 16), tf.uint8)[..., None]
    if channels == 4:
        return tf.concat([image, tf.fill(tf.shape(image[..., :1]), tf.constant(255, tf.uint8))], axis=-1)
    return image


def from_rgba(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Convert RGBA uint8 [H, W, 4] to uint8 [H, W, channels]; without alpha, blend it onto white."""
    return image if channels == 4 else from_rgb(_over_white(image), channels)


def premultiplied(image: tf.Tensor) -> tf.Tensor:
    """Return RGBA uint8 as float32 with colours multiplied by alpha.

    Images are resized in this form, as in Pillow, so that the colours of transparent pixels do not bleed into
    the edges of visible areas.
    """
    image = tf.cast(image, tf.float32)
    return tf.concat([image[..., :3] * (image[..., 3:] / 255.0), image[..., 3:]], axis=-1)


def unpremultiplied(image: tf.Tensor) -> tf.Tensor:
    """Invert `premultiplied`: return RGBA float32 in 0..255; colours without alpha are black."""
    alpha = tf.clip_by_value(image[..., 3:], 0.0, 255.0)
    colours = tf.where(alpha < 0.5, 0.0, image[..., :3] * (255.0 / tf.maximum(alpha, 0.5)))
    return tf.concat([colours, alpha], axis=-1)


def _over_white(image: tf.Tensor) -> tf.Tensor:
    """Blend RGBA uint8 [H, W, 4] onto white: RGB uint8 [H, W, 3], rounded to the nearest value."""
    colours, alpha = image[..., :3], image[..., 3:]
    opaque = tf.reduce_all(alpha == 255)
    return tf.cond(opaque, lambda: colours, lambda: _blended(colours, alpha))


def _blended(colours: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    alpha = tf.cast(alpha, tf.int32)
    weighted = tf.cast(colours, tf.int32) * alpha + 255 * (255 - alpha)
    return tf.cast((weighted + 127) // 255, tf.uint8)
