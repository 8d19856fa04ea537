"""Numbers out of a string tensor, in graph operations.

In: a scalar string tensor, the bytes of a file. Out: small int64 tensors. Every reader here
accepts any position and any bytes: what lies outside the string reads as zero, so that a
walk through damaged headers never fails by itself.
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
    # The operation takes 32 bits; a file of 2 GiB and more is refused by the decoders anyway.
    return tf.strings.substr(data, tf.cast(start, tf.int32), tf.cast(length, tf.int32))


def peek(data: tf.Tensor, position: tf.Tensor | int, count: int) -> tf.Tensor:
    """Return `count` bytes from `position` as int64 [count], values 0 to 255, zero outside `data`."""
    found = piece(data, tf.convert_to_tensor(position), tf.constant(count))
    # decode_raw wants a fixed length that is a multiple of the element's size: bytes always are.
    return tf.cast(tf.io.decode_raw(found, tf.uint8, fixed_length=count), tf.int64)


def little(values: tf.Tensor) -> tf.Tensor:
    """Read bytes, int64 [..., n], as one little-endian unsigned number, int64 [...]."""
    weights = tf.constant([256**i for i in range(values.shape[-1])], tf.int64)
    return tf.reduce_sum(values * weights, axis=-1)


def big(values: tf.Tensor) -> tf.Tensor:
    """Read bytes, int64 [..., n], as one big-endian unsigned number, int64 [...]."""
    return little(tf.reverse(values, [-1]))


def equals(values: tf.Tensor, expected: bytes) -> tf.Tensor:
    """Tell whether bytes, int64 [n], are exactly `expected` (n bytes): bool scalar."""
    return tf.reduce_all(values == tf.constant(list(expected), tf.int64))


def contains(data: tf.Tensor, wanted: bytes) -> tf.Tensor:
    """Tell whether `wanted` occurs anywhere in `data` (string scalar): bool scalar."""
    return tf.size(tf.strings.split(tf.reshape(data, [1]), wanted, maxsplit=1).values) > 1


def choose(condition: tf.Tensor, yes: tf.Tensor | int, no: tf.Tensor | int) -> tf.Tensor:
    """Return `yes` where the condition (bool scalar) holds, else `no`, as int64."""
    return tf.where(condition, tf.cast(yes, tf.int64), tf.cast(no, tf.int64))
