"""Image decoding and resizing in graph operations.

The input is the contents of a JPEG, PNG, GIF, BMP or WebP file as a scalar string tensor. The output is uint8
greyscale, RGB or RGBA pixels with the EXIF orientation applied. The same functions are used for training and
inside the exported model, which is loaded without this package, so they must not run Python code at run time.
An image that cannot be decoded raises InvalidArgumentError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import tensorflow as tf

from trainer.data.bmp import decode_bmp
from trainer.data.byte_ops import contains, equals, peek
from trainer.data.colours import from_rgb, from_rgba, premultiplied, unpremultiplied
from trainer.data.exif import jpeg_orientation, orient, png_orientation, webp_orientation
from trainer.data.gif import decode_gif
from trainer.data.resize import fill, find_window, to_bytes
from trainer.data.scaled_jpeg import RATIOS, decode_reduced, find_reduction
from trainer.spec import PixelFormat

Decoder = Callable[[tf.Tensor, int], tf.Tensor]

_JPEG = b"\xff\xd8\xff"


def decode_image(image_bytes: tf.Tensor, channels: int = 3) -> tf.Tensor:
    """Return the pixels of one encoded image as uint8 [H, W, channels], with its EXIF orientation applied.

    image_bytes: string scalar. channels: 1 (greyscale), 3 (RGB) or 4 (RGBA). CMYK is converted to RGB, and 16
    bits are reduced to the upper 8. Alpha is blended onto white unless the result is RGBA. The first frame of
    a GIF is used; it must be opaque and cover the whole canvas.

    Raises InvalidArgumentError if the bytes are not a complete image in one of these five formats.
    `trainer.data.reading` lists the formats that can be converted to one of them.
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
    decoders: list[Decoder] = [_decode_jpeg, _decode_png, _decode_gif, _decode_bmp, _decode_webp, _refuse]
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
    return fill(_scaled(image, window.inner, form.interpolation), window, form)


def decode_and_resize(image_bytes: tf.Tensor, form: PixelFormat) -> tf.Tensor:
    """Decode and resize one encoded image (string scalar) to uint8 of `form.shape`.

    See `decode_image` and `resize_image`. A JPEG that is much larger than the result is decoded at a reduced
    size, unless the interpolation is 'nearest'.
    """

    def from_all() -> tf.Tensor:
        return resize_image(decode_image(image_bytes, form.channels), form)

    if form.interpolation == "nearest":
        return from_all()
    is_jpeg = equals(peek(image_bytes, 0, 3), _JPEG)
    index = tf.cond(is_jpeg, lambda: find_reduction(image_bytes, form), lambda: tf.constant(0))
    reduced = [partial(decode_reduced, image_bytes, ratio, form) for ratio in RATIOS]
    return tf.switch_case(index, [from_all, *reduced])


def _decode_jpeg(data: tf.Tensor, channels: int) -> tf.Tensor:
    # INTEGER_ACCURATE gives the same pixels as other decoders, at a cost of 5% of the time.
    image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    return orient(from_rgb(image, channels), jpeg_orientation(data))


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
    animated = equals(head[:4], b"VP8X") & (head[8] & 0x02 > 0)
    # On an animation the operation writes past its buffer and crashes the process, so this check comes first.
    with tf.control_dependencies([tf.debugging.Assert(~animated, ["animated WebP is not supported"])]):
        still = tf.identity(data)
    image = tf.squeeze(tf.io.decode_webp(still, channels=0), axis=0)
    has_alpha = tf.shape(image)[2] == 4
    image = tf.cond(has_alpha, lambda: from_rgba(image, channels), lambda: from_rgb(image[..., :3], channels))
    return orient(image, webp_orientation(data))


def _refuse(data: tf.Tensor, channels: int) -> tf.Tensor:
    refusal = tf.debugging.Assert(False, ["not a JPEG, PNG, GIF, BMP or WebP image"])
    with tf.control_dependencies([refusal]):
        return tf.zeros([1, 1, channels], tf.uint8)


def _scaled(image: tf.Tensor, sides: tf.Tensor, interpolation: str) -> tf.Tensor:
    if interpolation == "nearest":
        return tf.image.resize(image, sides, method="nearest")
    resized = partial(tf.image.resize, size=sides, method=interpolation, antialias=True)
    if image.shape[-1] == 4:
        return to_bytes(unpremultiplied(resized(premultiplied(image))))
    return to_bytes(resized(image))
