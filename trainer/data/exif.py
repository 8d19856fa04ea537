"""EXIF orientation, parsed and applied in graph operations.

The input is the contents of a JPEG, PNG or WebP file as a scalar string tensor, or decoded pixels.
Orientations are 1 to 8; damaged or missing EXIF data means 1 and never raises an error. No Python code runs
at run time, so the exported model behaves the same.
"""

from __future__ import annotations

from collections.abc import Callable

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


_MAX_CHUNKS = 10_000
# Bounds the walk through a file made of empty chunks; real files have fewer.
_ORIENTATION_TAG = 0x0112
_SHORT, _LONG = 3, 4

Step = Callable[[tf.Tensor], "tuple[tf.Tensor, tf.Tensor, tf.Tensor]"]
# position -> (start of the EXIF block or -1, its length, the next position or -1)


def jpeg_orientation(data: tf.Tensor) -> tf.Tensor:
    """Return the orientation of a JPEG (string scalar), int32 scalar in 1..8."""
    # Most files have no EXIF block, and a search is ten times faster than the walk.
    start = choose(contains(data, b"Exif\0\0"), 2, -1)
    return _tiff_orientation(_walk(data, start, lambda position: _jpeg_segment(data, position)))


def png_orientation(data: tf.Tensor) -> tf.Tensor:
    """Return the orientation of a PNG (string scalar), int32 scalar in 1..8."""
    start = choose(contains(data, b"eXIf"), 8, -1)
    return _tiff_orientation(_walk(data, start, lambda position: _png_chunk(data, position)))


def webp_orientation(data: tf.Tensor) -> tf.Tensor:
    """Return the orientation of a WebP (string scalar), int32 scalar in 1..8."""
    flags = peek(data, 12, 9)
    has_exif = equals(flags[:4], b"VP8X") & (flags[8] & 0x08 > 0)
    start = choose(has_exif, 12, -1)
    return _tiff_orientation(_walk(data, start, lambda position: _webp_chunk(data, position)))


def orient(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Apply an EXIF orientation to pixels.

    image: any dtype [H, W, C]. orientation: int32 scalar in 1..8, as in the table of tag 0x0112 in Exif 2.32,
    section 4.6.4. Returns [H, W, C], or [W, H, C] for 5 to 8.
    """
    return tf.cond(orientation == 1, lambda: image, lambda: _apply_orientation(image, orientation))


def mirrored(orientation: tf.Tensor) -> tf.Tensor:
    """Return whether `orient` finally flips the rows and the columns: bool [2]."""
    is_flipped = [
        tf.reduce_any(orientation == tf.constant(values)) for values in ((3, 4, 7, 8), (2, 3, 6, 7))
    ]
    return tf.stack(is_flipped)


def _apply_orientation(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    # Each of the eight orientations is an optional transposition, then a flip in none, one or both
    # directions.
    rows, columns = tf.unstack(mirrored(orientation))
    image = tf.cond(orientation >= 5, lambda: _transpose(image), lambda: image)
    image = tf.cond(columns, lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(rows, lambda: tf.reverse(image, [0]), lambda: image)


def _transpose(image: tf.Tensor) -> tf.Tensor:
    # By index: on CPUs without AVX-512, tf.transpose of uint8 with oneDNN logs an error and falls back.
    height, width, channels = tf.unstack(tf.shape(image))
    indices = tf.range(width)[:, None] + width * tf.range(height)[None, :]
    return tf.gather(tf.reshape(image, [-1, channels]), indices)


def _walk(data: tf.Tensor, start: tf.Tensor, step: Step) -> tf.Tensor:
    """Iterate over chunks until `step` finds the EXIF block; return the block, or an empty string."""
    size = size_of(data)
    none = tf.constant(-1, tf.int64)

    def is_unfinished(position: tf.Tensor, block: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return (position >= 0) & (position < size) & (block < 0)

    def advance(position: tf.Tensor, _: tf.Tensor, __: tf.Tensor) -> tuple[tf.Tensor, ...]:
        block, length, next_position = step(position)
        return next_position, block, length

    _, block, length = tf.while_loop(
        is_unfinished,
        advance,
        (start, none, tf.constant(0, tf.int64)),
        maximum_iterations=_MAX_CHUNKS,
        parallel_iterations=1,
    )
    return piece(data, block, choose(block >= 0, length, 0))


def _jpeg_segment(data: tf.Tensor, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Parse a marker segment: FF, marker, length including itself, payload (ITU T.81, B.1.1.4)."""
    head = peek(data, position, 10)
    marker, length = head[1], big(head[2:4])
    is_exif = (marker == 0xE1) & equals(head[4:10], b"Exif\0\0")
    # FF may be repeated as padding. Standalone markers have no length. SOS precedes the pixels, and EOI ends
    # the file.
    next_position = position + choose(marker == 0xFF, 1, 2 + length)
    is_standalone = ((marker >= 0xD0) & (marker <= 0xD7)) | (marker == 0x01)
    next_position = choose(is_standalone, position + 2, next_position)
    # Bytes between two segments are skipped, as in libjpeg.
    is_stray = (head[0] != 0xFF) | (marker == 0)
    is_end = ~is_stray & ((marker == 0xDA) | (marker == 0xD9))
    next_position = choose(is_stray, position + 1, next_position)
    return choose(is_exif & ~is_stray, position + 10, -1), length - 8, choose(is_end, -1, next_position)


def _png_chunk(data: tf.Tensor, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Parse a chunk: length, type, payload, checksum (PNG specification, third edition, 5.3)."""
    head = peek(data, position, 8)
    length = big(head[:4])
    is_exif = equals(head[4:], b"eXIf")
    is_end = equals(head[4:], b"IEND")
    return (
        choose(is_exif, position + 8, -1),
        length,
        choose(is_end, -1, position + 12 + length),
    )


def _webp_chunk(data: tf.Tensor, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Parse a RIFF chunk: type, length, payload padded to an even length (WebP container, RFC 9649)."""
    head = peek(data, position, 14)
    length = little(head[4:8])
    is_exif = equals(head[:4], b"EXIF")
    # Some writers add the prefix that is only required in a JPEG.
    skip = choose(equals(head[8:14], b"Exif\0\0"), 6, 0)
    return (
        choose(is_exif, position + 8 + skip, -1),
        length - skip,
        position + 8 + length + length % 2,
    )


def _tiff_orientation(tiff: tf.Tensor) -> tf.Tensor:
    """Return tag 0x0112 of the first directory of a TIFF block (TIFF 6.0, section 2), or 1."""
    one = tf.constant(1, tf.int32)
    return tf.cond(tf.strings.length(tiff) >= 14, lambda: _directory_orientation(tiff), lambda: one)


def _directory_orientation(tiff: tf.Tensor) -> tf.Tensor:
    head = peek(tiff, 0, 8)
    little_endian, big_endian = equals(head[:4], b"II*\0"), equals(head[:4], b"MM\0*")

    def number(values: tf.Tensor) -> tf.Tensor:
        return tf.where(little_endian, little(values), big(values))

    directory = number(head[4:8])
    entries = _entries(tiff, directory, number(peek(tiff, directory, 2)))
    tag, kind = number(entries[:, 0:2]), number(entries[:, 2:4])
    value = tf.where(kind == _LONG, number(entries[:, 8:12]), number(entries[:, 8:10]))
    is_valid = (tag == _ORIENTATION_TAG) & ((kind == _SHORT) | (kind == _LONG)) & (value >= 1) & (value <= 8)
    is_valid &= little_endian | big_endian
    # There should be at most one such entry; if a damaged directory has more, the largest value wins.
    return tf.cast(tf.reduce_max(tf.concat([tf.where(is_valid, value, 1), [1]], axis=0)), tf.int32)


def _entries(tiff: tf.Tensor, directory: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Return the directory entries that are within the block, int64 [n, 12]."""
    inside = tf.maximum((size_of(tiff) - directory - 2) // 12, 0)
    table = piece(tiff, directory + 2, tf.minimum(count, inside) * 12)
    return tf.reshape(tf.cast(tf.io.decode_raw(table, tf.uint8), tf.int64), [-1, 12])
