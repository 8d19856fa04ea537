"""BMP decoder built from TensorFlow graph operations.

The input is the contents of a .bmp file as a scalar string tensor. TensorFlow's own operation returns palette
indices instead of colours for a bitmap with a palette, and rejects a single trailing byte. This decoder
supports uncompressed bitmaps of 1, 4, 8, 24 and 32 bits, stored top-down or bottom-up. Any other bitmap
raises an InvalidArgumentError that names the unsupported property.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.data.byte_ops import little, peek, piece, size_of

_PLAIN, _BITFIELDS = 0, 3
_LARGEST_SIDE = 1 << 24
_USUAL_MASKS = (0x00FF0000, 0x0000FF00, 0x000000FF)


def decode_bmp(data: tf.Tensor) -> tf.Tensor:
    """Return the pixels of a bitmap (string scalar) as RGB uint8 [H, W, 3].

    The fourth byte of 32-bit pixels is ignored unless a mask declares it as alpha. The layout is defined by
    BITMAPFILEHEADER, BITMAPINFOHEADER and its successors. Raises InvalidArgumentError.
    """
    head = peek(data, 0, 70)
    bits, height = little(head[28:30]), _signed(little(head[22:26]))
    row_bytes = (little(head[18:22]) * bits + 31) // 32 * 4
    with tf.control_dependencies(_checks(data, head, row_bytes)):
        pixels = piece(data, little(head[10:14]), row_bytes * tf.abs(height))
    rows = tf.reshape(tf.io.decode_raw(pixels, tf.uint8), tf.stack([tf.abs(height), row_bytes]))
    rows = tf.cond(height > 0, lambda: tf.reverse(rows, [0]), lambda: rows)
    image = tf.cond(
        bits <= 8,
        lambda: _from_palette(data, head, rows),
        lambda: _from_colours(rows, little(head[18:22]), bits),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _signed(number: tf.Tensor) -> tf.Tensor:
    return tf.where(number >= 1 << 31, number - (1 << 32), number)


def _checks(data: tf.Tensor, head: tf.Tensor, row_bytes: tf.Tensor) -> list[tf.Operation]:
    """Return the assertions that the decoder depends on, in order."""
    start, header_bytes, width = little(head[10:14]), little(head[14:18]), little(head[18:22])
    height, bits = tf.abs(_signed(little(head[22:26]))), little(head[28:30])
    known = tf.reduce_any(bits == tf.constant([1, 4, 8, 24, 32], tf.int64))
    supported = known & (header_bytes >= 40) & _is_uncompressed(head, bits)
    sides = (width > 0) & (height > 0) & (width < _LARGEST_SIDE) & (height < _LARGEST_SIDE)
    enough = (start >= 14 + header_bytes) & (start + row_bytes * height <= size_of(data))
    what = [bits, "bits, compression", little(head[30:34]), "header", header_bytes]
    return [
        tf.debugging.Assert(supported, ["BMP of this kind is not supported:", *what]),
        tf.debugging.Assert(sides, ["BMP width or height is out of range"]),
        # With sides that are out of range the product can overflow, so this check is skipped.
        tf.debugging.Assert(enough | ~sides, ["BMP is truncated"]),
    ]


def _is_uncompressed(head: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    masks = little(tf.reshape(head[54:66], [3, 4]))
    usual = tf.reduce_all(masks == tf.constant(_USUAL_MASKS, tf.int64))
    # A header of 56 bytes or more also has a mask for alpha.
    has_alpha = (little(head[14:18]) >= 56) & (little(head[66:70]) > 0)
    compression = little(head[30:34])
    return (compression == _PLAIN) | ((compression == _BITFIELDS) & (bits == 32) & usual & ~has_alpha)


def _from_colours(rows: tf.Tensor, width: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Remove the row padding and convert BGR or BGRX to RGB."""
    channels = bits // 8
    image = tf.reshape(rows[:, : width * channels], tf.stack([tf.shape(rows, tf.int64)[0], width, channels]))
    return tf.reverse(image[..., :3], [-1])


def _from_palette(data: tf.Tensor, head: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Unpack indices of 1, 4 or 8 bits, leftmost pixel in the highest bits, and look up their colours."""
    width, bits, palette_start = little(head[18:22]), little(head[28:30]), 14 + little(head[14:18])
    small = tf.cast(bits, tf.int32)
    shifts = tf.range(8 - small, -1, -small)
    indices = tf.bitwise.right_shift(tf.cast(rows, tf.int32)[..., tf.newaxis], shifts)
    indices = tf.bitwise.bitwise_and(indices, tf.bitwise.left_shift(1, small) - 1)
    indices = tf.reshape(indices, tf.stack([tf.shape(rows)[0], -1]))[:, :width]
    # Indices beyond the end of the palette are black, also where the pixel data overlaps the palette.
    entries = tf.minimum(little(head[10:14]) - palette_start, 1024)
    palette = tf.io.decode_raw(piece(data, palette_start, entries), tf.uint8, fixed_length=1024)
    return tf.gather(tf.reverse(tf.reshape(palette, [256, 4])[:, :3], [-1]), indices)
