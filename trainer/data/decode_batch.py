"""Decoding of a batch of encoded images in graph operations, with an error text per image.

An image that cannot be decoded does not fail the batch. TensorFlow graphs cannot catch the error of an
operation; only `tf.data` can skip the elements that fail. So a batch is a short pipeline that skips the bad
images, and the others are written to their rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow as tf

from trainer.data.decode import (
    RATIOS,
    count_gif_pixels,
    decode_and_resize,
    decode_jpeg,
    decode_reduced,
    find_reduction,
    resize_image,
)
from trainer.data.exif import big, equals, jpeg_orientation, little, orient, peek
from trainer.spec import PixelFormat

_JPEG, _PNG, _GIF, _BMP, _RIFF, _WEBP = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"RIFF",
    b"WEBP",
)
_NAMES = ("JPEG", "PNG", "GIF", "BMP", "WebP")
_PARALLEL_IMAGES = 4
"""Images of one request that are decoded at once; requests are also served in parallel."""

_Decoded = tuple[tf.Tensor, tf.Tensor]
# pixels; declared height, width and number of pixels, int64 [3]
_Rows = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
# pixels, whether the image was decoded, the declared sizes, int64 [batch, 3]


def decode_batch(image_bytes: tf.Tensor, form: PixelFormat, max_pixels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode and resize encoded images, string [batch].

    Returns pixels, uint8 [batch, *form.shape], and the error of each image, string [batch], which is empty
    for a good one. The pixels of a bad image are black. An image that declares more than `max_pixels` is not
    decoded. See `trainer.data.decode.decode_and_resize`.
    """
    is_jpeg = tf.equal(tf.strings.substr(image_bytes, 0, len(_JPEG)), _JPEG)

    def decode_jpegs() -> _Rows:
        images = (image_bytes, _orientations(image_bytes))
        return _decode_rows(images, is_jpeg, partial(_decode_jpeg, form=form, limit=max_pixels), form)

    def decode_others() -> _Rows:
        return _decode_rows((image_bytes,), ~is_jpeg, partial(_decode_any, form=form, limit=max_pixels), form)

    # The functions of a pipeline are instantiated in every call, so JPEGs have a small one of their own.
    nothing = partial(_skip_rows, tf.size(is_jpeg), form)
    pixels, is_decoded, sizes = _merge(
        tf.cond(tf.reduce_any(is_jpeg), decode_jpegs, nothing),
        tf.cond(tf.reduce_all(is_jpeg), nothing, decode_others),
    )
    is_large = sizes[:, 2] > max_pixels
    errors = tf.cond(
        tf.reduce_all(is_decoded & ~is_large),
        lambda: tf.zeros_like(image_bytes),
        lambda: _describe_errors(image_bytes, is_decoded, sizes, max_pixels),
    )
    return pixels, errors


def _orientations(image_bytes: tf.Tensor) -> tf.Tensor:
    """Return the orientation of each image in EXIF, int32 [batch], as of a JPEG; never raises an error."""
    has_exif = tf.strings.split(image_bytes, b"Exif\0\0", maxsplit=1).row_lengths() > 1
    return tf.cond(
        tf.reduce_any(has_exif),
        lambda: tf.map_fn(jpeg_orientation, image_bytes, fn_output_signature=tf.TensorSpec([], tf.int32)),
        lambda: tf.ones_like(has_exif, tf.int32),
    )


def _skip_rows(count: tf.Tensor, form: PixelFormat) -> _Rows:
    """Return rows without an image."""
    sizes = tf.zeros([count, 3], tf.int64)
    return tf.zeros([count, *form.shape], tf.uint8), tf.zeros([count], tf.bool), sizes


def _merge(first: _Rows, second: _Rows) -> _Rows:
    """Return the rows of both parts, each of which has zeros in the rows of the other."""
    pixels, decoded, sizes = zip(first, second, strict=True)
    return tf.add(*pixels), tf.logical_or(*decoded), tf.add(*sizes)


def _decode_rows(
    images: tuple[tf.Tensor, ...], is_selected: tf.Tensor, decode: Callable[..., _Decoded], form: PixelFormat
) -> _Rows:
    """Decode the selected images; the rows of all other images, and of those that fail, are zero.

    images: arguments of `decode`, [batch] each.
    """
    count = tf.size(is_selected, out_type=tf.int64)
    rows = tf.where(is_selected)[:, 0]
    selected = tf.data.Dataset.from_tensor_slices((rows, *(tf.gather(values, rows) for values in images)))
    decoded = selected.map(
        lambda row, *values: (row, *decode(*values)), num_parallel_calls=_PARALLEL_IMAGES, deterministic=False
    ).ignore_errors(log_warning=False)
    # A batch without elements is an error, so an element for a row after the last one is added.
    blank = (tf.zeros(form.shape, tf.uint8), tf.zeros([3], tf.int64))
    end = tf.data.Dataset.from_tensors((count, *blank))
    batch = decoded.concatenate(end).batch(count + 1).with_options(_options())
    good, pixels, sizes = batch.get_single_element()

    def spread(values: tf.Tensor, shape: tuple[int, ...] = ()) -> tf.Tensor:
        whole = tf.concat([[count + 1], np.array(shape, np.int64)], 0)
        return tf.ensure_shape(tf.scatter_nd(good[:, None], values, whole)[:-1], [None, *shape])

    is_decoded = spread(tf.ones_like(good)) > 0
    return spread(pixels, form.shape), is_decoded, spread(sizes, (3,))


def _options() -> tf.data.Options:
    """Return options without the optimizations of a pipeline that lives longer than one batch."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.deterministic = False
    return options


def _decode_jpeg(data: tf.Tensor, orientation: tf.Tensor, form: PixelFormat, limit: int) -> _Decoded:
    """Return the pixels of a JPEG, as `decode_and_resize` does, and the size that it declares."""
    height, width = tf.unstack(tf.cast(tf.io.extract_jpeg_shape(data)[:2], tf.int64))

    def decode_whole() -> tf.Tensor:
        return resize_image(orient(decode_jpeg(data, form.channels), orientation), form)

    branches = [decode_whole]
    index = tf.constant(0)
    if form.interpolation != "nearest":
        index = find_reduction(data, form, orientation)
        branches += [partial(decode_reduced, data, ratio, form, orientation) for ratio in RATIOS]
    index = tf.where(height * width > limit, len(branches), index)
    pixels = tf.switch_case(index, [*branches, lambda: tf.zeros(form.shape, tf.uint8)])
    return tf.ensure_shape(pixels, form.shape), tf.stack([height, width, height * width])


def _decode_any(data: tf.Tensor, form: PixelFormat, limit: int) -> _Decoded:
    """Return the pixels of an image in any of the formats, and the size that it declares."""
    height, width = declared_sides(data)
    count = height * width
    is_gif = tf.equal(tf.strings.substr(data, 0, len(_GIF)), _GIF)
    count = tf.cond(
        is_gif & (count <= limit), lambda: tf.maximum(count, _bound_gif_pixels(data, limit)), lambda: count
    )
    pixels = tf.cond(
        count > limit,
        lambda: tf.zeros(form.shape, tf.uint8),
        lambda: decode_and_resize(data, form),
    )
    return tf.ensure_shape(pixels, form.shape), tf.stack([height, width, count])


def _bound_gif_pixels(data: tf.Tensor, limit: int) -> tf.Tensor:
    """Return at least the pixels of all frames of a GIF but the first, or 0 if they are certainly few.

    Counting follows all blocks of the file, so it is done only where the bytes that may begin a frame, a zero
    that ends the blocks before it and a comma, declare more than `limit` pixels in all.
    """
    values = tf.cast(tf.io.decode_raw(data, tf.uint8), tf.int64)
    starts = tf.where((values[:-10] == 0) & (values[1:-9] == 0x2C))[:, 0]
    width, height, wide, high = (tf.gather(values, starts + offset) for offset in (6, 8, 7, 9))
    declared = tf.reduce_sum((width + 256 * wide) * (height + 256 * high))
    return tf.cond(declared > limit, lambda: count_gif_pixels(data, limit), lambda: tf.constant(0, tf.int64))


def declared_sides(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return height and width in the header of an encoded image (string scalar), int64 scalars.

    They are 0 if the format or the header is not known. The layouts are those of `trainer.data.header`.
    Raises InvalidArgumentError for a damaged JPEG.
    """
    head = peek(data, 0, 30)
    sides = tf.stack(
        [
            _jpeg_sides(data, equals(head[:3], _JPEG)),
            tf.stack([big(head[20:24]), big(head[16:20])]),
            tf.stack([little(head[8:10]), little(head[6:8])]),
            tf.abs(tf.stack([_signed(head[22:26]), _signed(head[18:22])])),
            _webp_sides(head),
            tf.zeros(2, tf.int64),
        ]
    )
    height, width = tf.unstack(sides[_find_kind(head)])
    return height, width


def _find_kind(head: tf.Tensor) -> tf.Tensor:
    """Return the index of the format in `_NAMES`, or its length if the format is not known."""
    is_webp = equals(head[:4], _RIFF) & equals(head[8:12], _WEBP)
    kinds = [equals(head[: len(magic)], magic) for magic in (_JPEG, _PNG, _GIF, _BMP)]
    return tf.argmax(tf.cast(tf.stack([*kinds, is_webp, True]), tf.int32), output_type=tf.int32)


def _jpeg_sides(data: tf.Tensor, is_jpeg: tf.Tensor) -> tf.Tensor:
    return tf.cond(
        is_jpeg,
        lambda: tf.cast(tf.io.extract_jpeg_shape(data)[:2], tf.int64),
        lambda: tf.zeros(2, tf.int64),
    )


def _signed(values: tf.Tensor) -> tf.Tensor:
    number = little(values)
    return tf.where(number >= 1 << 31, number - (1 << 32), number)


def _webp_sides(head: tf.Tensor) -> tf.Tensor:
    """Return height and width of a WebP (container, RFC 9649; lossy frames, RFC 6386)."""
    canvas = tf.stack([little(head[27:30]), little(head[24:27])]) + 1
    bits = little(head[21:25])
    lossless = tf.stack([bits // (1 << 14) % (1 << 14), bits % (1 << 14)]) + 1
    lossy = tf.stack([little(head[28:30]), little(head[26:28])]) % (1 << 14)
    sides = tf.where(equals(head[12:16], b"VP8X"), canvas, lossy)
    return tf.where(equals(head[12:16], b"VP8L"), lossless, sides)


def _describe_errors(
    image_bytes: tf.Tensor, is_decoded: tf.Tensor, declared: tf.Tensor, limit: int
) -> tf.Tensor:
    """Return the error of each image, string [batch]; empty for a good one."""
    kinds = tf.map_fn(
        lambda data: _find_kind(peek(data, 0, 12)),
        image_bytes,
        fn_output_signature=tf.TensorSpec([], tf.int32),
    )
    names = tf.gather([*_NAMES, "image"], kinds)
    heights, widths, counts = tf.unstack(declared, axis=1)
    sides = tf.strings.join([tf.strings.as_string(widths), tf.strings.as_string(heights)], " x ")
    large = tf.strings.join(["too large: declares ", sides, f" pixels, over the limit of {limit} pixels"])
    damaged = tf.strings.join(["damaged or truncated: the ", names, " cannot be decoded"])
    failed = tf.where(kinds == len(_NAMES), "not a JPEG, PNG, GIF, BMP or WebP image", damaged)
    failed = tf.where(tf.equal(image_bytes, b""), "empty file", failed)
    errors = tf.where(is_decoded, "", failed)
    many = f"too large: its frames have more than {limit} pixels together"
    large = tf.where(heights * widths > limit, large, many)
    return tf.where(counts > limit, large, errors)
