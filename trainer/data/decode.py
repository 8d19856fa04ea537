"""Image decoding and resizing in graph operations.

The input is the contents of a JPEG, PNG, GIF, BMP or WebP file as a scalar string tensor. The output is uint8
greyscale, RGB or RGBA pixels with the EXIF orientation applied. The same functions are used for training and
inside the exported model, which is loaded without this package, so they must not run Python code at run time.
An image that cannot be decoded raises InvalidArgumentError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from trainer.data.colours import from_rgb, from_rgba, premultiplied, unpremultiplied
from trainer.data.denoise import remove_noise
from trainer.data.exif import (
    choose,
    contains,
    equals,
    jpeg_orientation,
    little,
    mirrored,
    orient,
    peek,
    piece,
    png_orientation,
    size_of,
    webp_orientation,
)
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
    """Pad `image`, uint8 of the window's inner sides, with black on all sides: uint8 of `form.shape`.

    Noise is removed first, so that the border neither blurs nor counts.
    """
    if form.denoise is not None:
        image = remove_noise(image, form.denoise)
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


_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}
"""TensorFlow's names of the antialiasing filters, by interpolation."""
RATIOS = (2, 4, 8)
"""Factors by which libjpeg can reduce an image while decoding."""
_LEFT_TO_RESIZE = 4
"""Minimum factor by which the image is reduced further after decoding.

With 4, the pixels of 60 photos, resized to 32, 16 and 8 pixels a side, differ from those of the whole image
by 0.1 (ratio 2) to 0.4 (ratio 8) of 255 in the mean, and by 1.5 in the worst photo.
"""


def find_reduction(data: tf.Tensor, form: PixelFormat, orientation: tf.Tensor | None = None) -> tf.Tensor:
    """Return the index of the largest suitable ratio in RATIOS, from 1, or 0 if there is none: int32 scalar.

    orientation: int32 scalar, if it is known already. Raises InvalidArgumentError if the data is not a JPEG.
    """
    sides = tf.io.extract_jpeg_shape(data)[:2]
    if form.height != form.width:
        sides = _upright(sides, jpeg_orientation(data) if orientation is None else orientation)
    scales = form.crop_fraction * (sides / tf.constant(form.shape[:2]))
    # With 'pad' one side fills the result and determines the scale; otherwise both sides fill it at least.
    scale = tf.reduce_max(scales) if form.resize == "pad" else tf.reduce_min(scales)
    least = _LEFT_TO_RESIZE * tf.constant(RATIOS)
    # In an image of a few rows or columns, the padding of the 8 x 8 blocks would be mixed into the pixels.
    fits = (scale >= tf.cast(least, tf.float64)) & (tf.reduce_min(sides) >= least)
    return tf.reduce_sum(tf.cast(fits, tf.int32))


def decode_reduced(
    data: tf.Tensor, ratio: int, form: PixelFormat, orientation: tf.Tensor | None = None
) -> tf.Tensor:
    """Decode a JPEG at 1/ratio of its size, apply its orientation and resize it to uint8 `form.shape`.

    orientation: int32 scalar, if it is known already.

    Each pixel from libjpeg covers ratio x ratio pixels of the image. The last row and column extend beyond
    the image unless `ratio` divides its sides, so the resizing takes the exact position of the image into
    account.
    """
    orientation = jpeg_orientation(data) if orientation is None else orientation
    image = orient(decode_jpeg(data, form.channels, ratio), orientation)
    sides = _upright(tf.io.extract_jpeg_shape(data)[:2], orientation)
    window = find_window(sides, form)
    # If the image is mirrored, the part that extends beyond it comes first.
    beyond = tf.where(mirrored(orientation), ratio * tf.shape(image)[:2] - sides, 0)
    start = window.start + beyond
    first, end = start // ratio, -(-(start + window.extent) // ratio)
    image = image[first[0] : end[0], first[1] : end[1]]
    scale = tf.cast(window.inner / window.extent, tf.float32)
    # The same as `tf.image.resize`, but with a scale and an offset in fractions of pixels.
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
    """Return height and width after the orientation is applied."""
    return tf.where(orientation >= 5, tf.reverse(sides, [0]), sides)


Decoder = Callable[[tf.Tensor, int], tf.Tensor]

_JPEG = b"\xff\xd8\xff"


def decode_image(image_bytes: tf.Tensor, channels: int = 3) -> tf.Tensor:
    """Return the pixels of one encoded image as uint8 [H, W, channels], with its EXIF orientation applied.

    image_bytes: string scalar. channels: 1 (greyscale), 3 (RGB) or 4 (RGBA). CMYK is converted to RGB, and 16
    bits are reduced to the upper 8. Alpha is blended onto white unless the result is RGBA. The first frame of
    a GIF is used; it must be opaque and cover the whole canvas.

    Raises InvalidArgumentError if the bytes are not a complete image in one of these five formats.
    `trainer.data.formats` lists the formats that can be converted to one of them.
    """
    magic = peek(image_bytes, 0, 12)
    kinds = tf.stack(
        [
            equals(magic[:3], _JPEG),
            equals(magic[:8], b"\x89PNG\r\n\x1a\n"),
            equals(magic[:4], b"GIF8"),
            equals(magic[:2], b"BM"),
            equals(magic[:4], b"RIFF") & equals(magic[8:12], b"WEBP"),
            True,
        ]
    )
    decoders: list[Decoder] = [_decode_jpeg, _decode_png, _decode_gif, _decode_bmp, _decode_webp, _reject]
    index = tf.argmax(tf.cast(kinds, tf.int32), output_type=tf.int32)
    image = tf.switch_case(index, [partial(decoder, image_bytes, channels) for decoder in decoders])
    return tf.ensure_shape(image, [None, None, channels])


def resize_image(image: tf.Tensor, form: PixelFormat) -> tf.Tensor:
    """Return `image`, uint8 [H, W, channels], as uint8 of `form.shape`.

    resize: 'stretch' ignores the aspect ratio. 'crop' uses the largest central region with the aspect ratio
    of the result, with its sides multiplied by `crop_fraction`. 'pad' keeps the whole image, centred on
    black, which is transparent for RGBA.

    interpolation: 'bilinear' and 'bicubic' are antialiased (triangle filter, or Keys 1981 with a = -0.5,
    scaled by the reduction) and rounded to the nearest value. 'nearest' picks single pixels.
    """
    window = find_window(tf.shape(image)[:2], form)
    if form.resize == "crop":
        image = tf.slice(
            image, tf.concat([window.start, [0]], 0), tf.concat([window.extent, [form.channels]], 0)
        )
    return fill(_resize_pixels(image, window.inner, form.interpolation), window, form)


def decode_and_resize(image_bytes: tf.Tensor, form: PixelFormat) -> tf.Tensor:
    """Decode and resize one encoded image (string scalar) to uint8 of `form.shape`.

    See `decode_image` and `resize_image`. A JPEG that is much larger than the result is decoded at a reduced
    size, unless the interpolation is 'nearest'.
    """

    def decode_whole() -> tf.Tensor:
        return resize_image(decode_image(image_bytes, form.channels), form)

    if form.interpolation == "nearest":
        return decode_whole()
    is_jpeg = equals(peek(image_bytes, 0, 3), _JPEG)
    index = tf.cond(is_jpeg, lambda: find_reduction(image_bytes, form), lambda: tf.constant(0))
    reduced = [partial(decode_reduced, image_bytes, ratio, form) for ratio in RATIOS]
    return tf.switch_case(index, [decode_whole, *reduced])


def _decode_jpeg(data: tf.Tensor, channels: int) -> tf.Tensor:
    return orient(decode_jpeg(data, channels), jpeg_orientation(data))


def decode_jpeg(data: tf.Tensor, channels: int, ratio: int = 1) -> tf.Tensor:
    """Return the pixels of a JPEG at 1/ratio of its size, without its orientation applied."""
    # INTEGER_ACCURATE gives the same pixels as other decoders, at a cost of 5% of the time.
    image = tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")
    return from_rgb(image, channels)


def _decode_gif(data: tf.Tensor, channels: int) -> tf.Tensor:
    return from_rgb(decode_gif(data), channels)


def _decode_bmp(data: tf.Tensor, channels: int) -> tf.Tensor:
    return from_rgb(decode_bmp(data), channels)


def _decode_png(data: tf.Tensor, channels: int) -> tf.Tensor:
    # With three channels, alpha would be dropped and the colours of transparent pixels would show. With four,
    # an opaque image of less than 8 bits would get an alpha of 1 to 15. So four channels are used only if
    # there is alpha.
    colour_type = peek(data, 25, 1)[0]
    before_pixels = tf.strings.split(tf.reshape(data, [1]), b"IDAT", maxsplit=1).values[0]
    has_alpha = (colour_type == 4) | (colour_type == 6) | contains(before_pixels, b"tRNS")
    image = tf.cond(
        has_alpha,
        lambda: from_rgba(tf.io.decode_png(data, channels=4), channels),
        lambda: from_rgb(tf.io.decode_png(data, channels=3), channels),
    )
    return orient(image, png_orientation(data))


def _decode_webp(data: tf.Tensor, channels: int) -> tf.Tensor:
    head = peek(data, 12, 9)
    is_animated = equals(head[:4], b"VP8X") & (head[8] & 0x02 > 0)
    # On an animation the operation writes past its buffer and crashes the process, so this check comes first.
    with tf.control_dependencies([tf.debugging.Assert(~is_animated, ["animated WebP is not supported"])]):
        still = tf.identity(data)
    image = tf.squeeze(tf.io.decode_webp(still, channels=0), axis=0)
    has_alpha = tf.shape(image)[2] == 4
    image = tf.cond(has_alpha, lambda: from_rgba(image, channels), lambda: from_rgb(image[..., :3], channels))
    return orient(image, webp_orientation(data))


def _reject(data: tf.Tensor, channels: int) -> tf.Tensor:
    failure = tf.debugging.Assert(False, ["not a JPEG, PNG, GIF, BMP or WebP image"])
    with tf.control_dependencies([failure]):
        return tf.zeros([1, 1, channels], tf.uint8)


def _resize_pixels(image: tf.Tensor, sides: tf.Tensor, interpolation: str) -> tf.Tensor:
    if interpolation == "nearest":
        return tf.image.resize(image, sides, method="nearest")
    resized = partial(tf.image.resize, size=sides, method=interpolation, antialias=True)
    if image.shape[-1] == 4:
        return to_bytes(unpremultiplied(resized(premultiplied(image))))
    return to_bytes(resized(image))


_MAX_BLOCKS = 10_000
_EXTENSION, _CONTROL = 0x21, 0xF9

_State = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
# position, whether it is inside the blocks of an extension, whether the frame has a transparent colour


def decode_gif(data: tf.Tensor) -> tf.Tensor:
    """Return the first frame of a GIF (string scalar) as RGB uint8 [H, W, 3].

    Raises InvalidArgumentError, also if the frame is transparent or does not cover the canvas.
    """
    frame, is_transparent = _first_frame(data)
    # Left, top, width and height of the frame; width and height of the canvas.
    region, canvas = peek(data, frame + 1, 8), peek(data, 6, 4)
    covers_canvas = tf.reduce_all(region == tf.concat([tf.zeros(4, tf.int64), canvas], 0))
    check = tf.debugging.Assert(covers_canvas & ~is_transparent, ["GIF with transparency or a partial frame"])
    with tf.control_dependencies([check]):
        image = tf.io.decode_image(tf.identity(data), channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _first_frame(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the position of the first image descriptor, and whether it is transparent: bool scalar.

    Only extensions can precede it (GIF89a specification, appendix A).
    """
    flags, size = peek(data, 10, 1)[0], size_of(data)

    def is_before(position: tf.Tensor, inside: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return (position < size) & (inside | (peek(data, position, 1)[0] == _EXTENSION))

    def advance(position: tf.Tensor, inside: tf.Tensor, is_transparent: tf.Tensor) -> _State:
        head = peek(data, position, 4)
        is_control = ~inside & (head[1] == _CONTROL)
        following = position + tf.where(inside, 1 + head[0], 2)
        return following, ~inside | (head[0] > 0), tf.where(is_control, head[3] & 1 > 0, is_transparent)

    position, _, is_transparent = tf.while_loop(
        is_before,
        advance,
        (13 + _table_bytes(flags), tf.constant(False), tf.constant(False)),
        maximum_iterations=_MAX_BLOCKS,
        parallel_iterations=1,
    )
    return position, is_transparent


_MAX_GIF_BLOCKS = 200_000
_DESCRIPTOR = 0x2C


def count_gif_pixels(data: tf.Tensor, most: int) -> tf.Tensor:
    """Return the number of pixels in all frames of a GIF (string scalar), int64 scalar.

    The decoder unpacks all frames. The count stops above `most`. A file with too many blocks to count has
    `most` + 1 pixels.
    """
    flags, size = peek(data, 10, 1)[0], size_of(data)

    def is_before(position: tf.Tensor, inside: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
        kind = peek(data, position, 1)[0]
        is_block = inside | (kind == _EXTENSION) | (kind == _DESCRIPTOR)
        return (position < size) & is_block & (pixels <= most)

    def advance(position: tf.Tensor, inside: tf.Tensor, pixels: tf.Tensor) -> _State:
        head = peek(data, position, 10)
        is_frame = ~inside & (head[0] == _DESCRIPTOR)
        # The descriptor, a table of colours, and the code size of LZW precede the blocks of a frame.
        step = tf.where(is_frame, 11 + _table_bytes(head[9]), 2)
        frame = little(head[5:7]) * little(head[7:9])
        following = position + tf.where(inside, 1 + head[0], step)
        return following, ~inside | (head[0] > 0), pixels + tf.where(is_frame, frame, 0)

    position, inside, pixels = tf.while_loop(
        is_before,
        advance,
        (13 + _table_bytes(flags), tf.constant(False), tf.constant(0, tf.int64)),
        maximum_iterations=_MAX_GIF_BLOCKS,
        parallel_iterations=1,
    )
    return tf.where(is_before(position, inside, pixels), tf.constant(most + 1, tf.int64), pixels)


def _table_bytes(flags: tf.Tensor) -> tf.Tensor:
    """Return the size of the colour table that a flags byte declares, int64 scalar."""
    return choose(flags & 0x80 > 0, 3 * tf.bitwise.left_shift(tf.constant(2, tf.int64), flags & 7), 0)


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
    is_known = tf.reduce_any(bits == tf.constant([1, 4, 8, 24, 32], tf.int64))
    is_supported = is_known & (header_bytes >= 40) & _is_uncompressed(head, bits)
    has_valid_sides = (width > 0) & (height > 0) & (width < _LARGEST_SIDE) & (height < _LARGEST_SIDE)
    is_complete = (start >= 14 + header_bytes) & (start + row_bytes * height <= size_of(data))
    properties = [bits, "bits, compression", little(head[30:34]), "header", header_bytes]
    return [
        tf.debugging.Assert(is_supported, ["BMP of this kind is not supported:", *properties]),
        tf.debugging.Assert(has_valid_sides, ["BMP width or height is out of range"]),
        # With sides that are out of range the product can overflow, so this check is skipped.
        tf.debugging.Assert(is_complete | ~has_valid_sides, ["BMP is truncated"]),
    ]


def _is_uncompressed(head: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    masks = little(tf.reshape(head[54:66], [3, 4]))
    is_usual = tf.reduce_all(masks == tf.constant(_USUAL_MASKS, tf.int64))
    # A header of 56 bytes or more also has a mask for alpha.
    has_alpha = (little(head[14:18]) >= 56) & (little(head[66:70]) > 0)
    compression = little(head[30:34])
    return (compression == _PLAIN) | ((compression == _BITFIELDS) & (bits == 32) & is_usual & ~has_alpha)


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
