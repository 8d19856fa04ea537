"""Crop and padding geometry for resizing an image to the input of the model.

A `Window` is computed in graph operations from the sides of an image and a `PixelFormat`.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.spec import PixelFormat


class Window(NamedTuple):
    """Heights and widths in pixels, int32 [2] each."""

    start: tf.Tensor
    """Top left corner of the region in the image."""
    extent: tf.Tensor
    """Size of the region in the image."""
    inner: tf.Tensor
    """Size of the centred region in the result."""


def find_window(sides: tf.Tensor, form: PixelFormat) -> Window:
    """Return the region of an image with these `sides`, int32 [2], and its size in the result.

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
    """Pad `image`, uint8 of the window's inner sides, with black on all sides: uint8 of `form.shape`."""
    outer = tf.constant(form.shape[:2])
    before = (outer - window.inner) // 2
    margins = tf.concat([tf.stack([before, outer - window.inner - before], axis=1), [[0, 0]]], axis=0)
    return tf.ensure_shape(tf.pad(image, margins), form.shape)


def _largest(shape: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Return the sides, float64 [2], of the largest rectangle in `box` with the aspect ratio of `shape`.

    Both arguments are int32 [2]. The side that reaches the border of the box is exact.
    """
    shape, box = tf.cast(shape, tf.int64), tf.cast(box, tf.int64)
    limit = tf.where(shape[0] * box[1] >= shape[1] * box[0], 0, 1)
    return shape * box[limit] / shape[limit]


def _rounded(sides: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(sides), tf.int32)


def to_bytes(pixels: tf.Tensor) -> tf.Tensor:
    """Round float pixels to the nearest uint8 value."""
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0.0, 255.0), tf.uint8)
