"""Which part of an image becomes which part of the pixels that a network receives.

In: the sides of an image and a `PixelFormat`. Out: a `Window`, in graph operations.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.spec import PixelFormat


class Window(NamedTuple):
    """Heights and widths in pixels, int32 [2] each."""

    start: tf.Tensor
    """Where in the image the part begins."""
    extent: tf.Tensor
    """How much of the image it is."""
    inner: tf.Tensor
    """How much of the result it becomes, in its middle."""


def find_window(sides: tf.Tensor, form: PixelFormat) -> Window:
    """Return what of an image of these `sides`, int32 [2], goes to which part of the result.

    See `resize_image`.
    """
    whole = tf.constant(form.shape[:2])
    if form.resize == "crop":
        largest = _largest(whole, sides)
        extent = tf.clip_by_value(_rounded(form.crop_fraction * largest), 1, sides)
        return Window((sides - extent) // 2, extent, whole)
    inner = whole
    if form.resize == "pad":
        inner = tf.clip_by_value(_rounded(_largest(sides, whole)), 1, whole)
    return Window(tf.zeros_like(sides), sides, inner)


def fill(image: tf.Tensor, window: Window, form: PixelFormat) -> tf.Tensor:
    """Return `image`, uint8 of the window's inner sides, in the middle of black: uint8 of `form.shape`."""
    outer = tf.constant(form.shape[:2])
    before = (outer - window.inner) // 2
    margins = tf.concat([tf.stack([before, outer - window.inner - before], axis=1), [[0, 0]]], axis=0)
    return tf.ensure_shape(tf.pad(image, margins), form.shape)


def _largest(shape: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Return the sides, float64 [2], of the largest rectangle with the proportions of `shape` in `box`.

    Both are int32 [2]. The side that it shares with the box is exact.
    """
    shape, box = tf.cast(shape, tf.int64), tf.cast(box, tf.int64)
    limit = tf.where(shape[0] * box[1] >= shape[1] * box[0], 0, 1)
    return shape * box[limit] / shape[limit]


def _rounded(sides: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(sides), tf.int32)


def to_bytes(pixels: tf.Tensor) -> tf.Tensor:
    """Round float pixels to the nearest value that a byte has."""
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0.0, 255.0), tf.uint8)
