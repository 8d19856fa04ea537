"""JPEGs that are far larger than what is made of them, decoded at a part of their size.

In: the bytes of a JPEG as a scalar string tensor. Out: the pixels that the antialiased resizing of the whole
image gives, nearly, at a fraction of the time: libjpeg leaves out the finest detail of each block of 8 x 8
before it transforms it. In graph operations, as the exported model does the same.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.data.colours import from_rgb
from trainer.data.exif import jpeg_orientation, mirrored, orient
from trainer.data.window import fill, find_window, to_bytes
from trainer.spec import PixelFormat

_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}
"""TensorFlow's names of the antialiasing filters, by interpolation."""
RATIOS = (2, 4, 8)
"""By which libjpeg can reduce an image while it decodes it."""
_LEFT_TO_RESIZE = 4
"""By how much at least the resizing reduces it after that.

With 4 the pixels of 60 photos, made to 32, 16 and 8 pixels a side, differ by 0.1 (a half) to 0.4 (an
eighth) of 255 in the mean from those of the whole image, and by 1.5 in the worst photo.
"""


def find_reduction(data: tf.Tensor, form: PixelFormat) -> tf.Tensor:
    """Return which of RATIOS fits, counted from 1, or 0 if none does: int32 scalar.

    Raises InvalidArgumentError for what is no JPEG.
    """
    sides = tf.io.extract_jpeg_shape(data)[:2]
    if form.height != form.width:
        sides = _upright(sides, jpeg_orientation(data))
    scales = form.crop_fraction * (sides / tf.constant(form.shape[:2]))
    # The side that fills the result: where the rest is padded it is one, else both do at least.
    scale = tf.reduce_max(scales) if form.resize == "pad" else tf.reduce_min(scales)
    least = _LEFT_TO_RESIZE * tf.constant(RATIOS)
    # A mere line would be mixed with what the file fills its blocks of 8 x 8 with.
    fits = (scale >= tf.cast(least, tf.float64)) & (tf.reduce_min(sides) >= least)
    return tf.reduce_sum(tf.cast(fits, tf.int32))


def decode_reduced(data: tf.Tensor, ratio: int, form: PixelFormat) -> tf.Tensor:
    """Return a JPEG, decoded at 1/ratio of its size and turned upright, as uint8 of `form.shape`.

    Each pixel of what libjpeg gives stands for ratio x ratio of the image, but in its last row and column,
    which reach beyond it unless the sides divide: so the resizing is told where the image lies.
    """
    orientation = jpeg_orientation(data)
    image = tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")
    image = orient(from_rgb(image, form.channels), orientation)
    sides = _upright(tf.io.extract_jpeg_shape(data)[:2], orientation)
    window = find_window(sides, form)
    # Mirrored, what reaches beyond it comes first.
    beyond = tf.where(mirrored(orientation), ratio * tf.shape(image)[:2] - sides, 0)
    start = window.start + beyond
    first, end = start // ratio, -(-(start + window.extent) // ratio)
    image = image[first[0] : end[0], first[1] : end[1]]
    scale = tf.cast(window.inner / window.extent, tf.float32)
    # What `tf.image.resize` does, with a scale and a place that aren't those of whole pixels.
    scaled = tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(image, tf.float32)[None],
        size=window.inner,
        scale=ratio * scale,
        translation=tf.cast(ratio * first - start, tf.float32) * scale,
        kernel_type=_KERNELS[form.interpolation],
        antialias=True,
    )[0]
    return fill(to_bytes(scaled), window, form)


def _upright(sides: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Return height and width as they are once the image is turned upright."""
    return tf.where(orientation >= 5, tf.reverse(sides, [0]), sides)
