"""Which part of an image becomes which part of a square.

In: the sides of an image, that of the square, and the way. Out: a `Window`, in graph operations.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Window(NamedTuple):
    """Heights and widths in pixels, int32 [2] each."""

    start: tf.Tensor
    """Where in the image the part begins."""
    extent: tf.Tensor
    """How much of the image it is."""
    inner: tf.Tensor
    """How much of the square it becomes, in its middle."""


def find_window(sides: tf.Tensor, size: int, resize: str) -> Window:
    """Return what of an image of these `sides`, int32 [2], goes to a square of `size`; see `resize_image`."""
    whole = tf.constant([size, size])
    if resize == "crop":
        extent = tf.reduce_min(sides) * tf.constant([1, 1])
        return Window((sides - extent) // 2, extent, whole)
    if resize == "pad":
        inner = tf.cast(tf.round(size * sides / tf.reduce_max(sides)), tf.int32)
        whole = tf.clip_by_value(inner, 1, size)
    return Window(tf.zeros_like(sides), sides, whole)


def fill(image: tf.Tensor, window: Window, size: int) -> tf.Tensor:
    """Return `image`, uint8 of the window's inner sides, in the middle of black: uint8 [size, size, 3]."""
    before = (size - window.inner) // 2
    margins = tf.concat([tf.stack([before, size - window.inner - before], axis=1), [[0, 0]]], axis=0)
    return tf.ensure_shape(tf.pad(image, margins), [size, size, 3])


def to_bytes(pixels: tf.Tensor) -> tf.Tensor:
    """Round float pixels to the nearest value that a byte has."""
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0.0, 255.0), tf.uint8)
