"""Binary parsing of string tensors in graph operations.

The input is a scalar string tensor with the contents of a file; the results are small int64 tensors. Every
function accepts any position and any bytes: bytes outside the string read as zero, so that parsing a damaged
header never fails by itself.
"""

from __future__ import annotations

import tensorflow as tf


def size_of(data: tf.Tensor) -> tf.Tensor:
    """Return the length of `data` (string scalar) in bytes, int64 scalar."""
    return tf.cast(tf.strings.length(data), tf.int64)


def piece(data: tf.Tensor, position: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Return `length` bytes from `position` as a string scalar; shorter or empty outside `data`."""
    size = size_of(data)
    start = tf.clip_by_value(tf.cast(position, tf.int64), 0, size)
    length = tf.clip_by_value(tf.cast(length, tf.int64), 0, size - start)
    # The operation uses 32-bit positions; the decoders reject files of 2 GiB and more anyway.
    return tf.strings.substr(data, tf.cast(start, tf.int32), tf.cast(length, tf.int32))


def peek(data: tf.Tensor, position: tf.Tensor | int, count: int) -> tf.Tensor:
    """Return `count` bytes from `position` as int64 [count], values 0 to 255, zero outside `data`."""
    part = piece(data, tf.convert_to_tensor(position), tf.constant(count))
    # decode_raw requires a fixed length that is a multiple of the element size; for bytes it always is.
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=count), tf.int64)


def little(values: tf.Tensor) -> tf.Tensor:
    """Interpret bytes, int64 [..., n], as a little-endian unsigned number, int64 [...]."""
    weights = tf.constant([256**i for i in range(values.shape[-1])], tf.int64)
    return tf.reduce_sum(values * weights, axis=-1)


def big(values: tf.Tensor) -> tf.Tensor:
    """Interpret bytes, int64 [..., n], as a big-endian unsigned number, int64 [...]."""
    return little(tf.reverse(values, [-1]))


def equals(values: tf.Tensor, expected: bytes) -> tf.Tensor:
    """Return whether bytes, int64 [n], equal `expected` (n bytes): bool scalar."""
    return tf.reduce_all(values == tf.constant(list(expected), tf.int64))


def contains(data: tf.Tensor, pattern: bytes) -> tf.Tensor:
    """Return whether `pattern` occurs anywhere in `data` (string scalar): bool scalar."""
    return tf.size(tf.strings.split(tf.reshape(data, [1]), pattern, maxsplit=1).values) > 1


def choose(condition: tf.Tensor, yes: tf.Tensor | int, no: tf.Tensor | int) -> tf.Tensor:
    """Return `yes` if the condition (bool scalar) is true, otherwise `no`, as int64."""
    return tf.where(condition, tf.cast(yes, tf.int64), tf.cast(no, tf.int64))
