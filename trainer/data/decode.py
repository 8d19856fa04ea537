"""Encoded images to pixels, in graph operations.

In: the bytes of a JPEG, PNG, GIF, BMP or WebP file as a scalar string tensor. Out: RGB pixels,
upright, uint8. The same functions run when a data set is read and inside an exported model,
which is loaded without this package: so there is no Python at run time. What can't be decoded
is an InvalidArgumentError.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from trainer.data.bmp import decode_bmp
from trainer.data.exif import jpeg_orientation, orient, png_orientation, webp_orientation
from trainer.data.peek import contains, equals, peek

Decoder = Callable[[tf.Tensor], tf.Tensor]

_RATIOS = (1, 2, 4, 8)
"""By which libjpeg reduces an image while it decodes it, at a fraction of the time."""
_LEFT_TO_RESIZE = 4
"""By how much at least the antialiased resizing reduces it after that.

With 4 the pixels of photos differ by 1.3 of 255 in the mean at most, with 2 by 3.0; both take as long.
"""


def decode_image(image_bytes: tf.Tensor, jpeg: Decoder | None = None) -> tf.Tensor:
    """Return the pixels of one encoded image as RGB uint8 [H, W, 3], turned as its EXIF says.

    `jpeg` decodes those of that kind, to their full size if it isn't given.

    image_bytes: string scalar. Grey and CMYK become RGB, 16 bits become 8 (the upper ones), alpha is
    laid over white; of a GIF it is the first frame, where transparent pixels show their palette's colour.
    Raises InvalidArgumentError for anything that isn't a whole image of these five kinds.
    """
    magic = peek(image_bytes, 0, 12)
    kinds = tf.stack(
        [
            equals(magic[:3], b"\xff\xd8\xff"),
            equals(magic[:8], b"\x89PNG\r\n\x1a\n"),
            equals(magic[:4], b"GIF8"),
            equals(magic[:2], b"BM"),
            equals(magic[:4], b"RIFF") & equals(magic[8:12], b"WEBP"),
            True,
        ]
    )
    jpeg = jpeg or _decode_jpeg
    decoders: list[Decoder] = [jpeg, _decode_png, _decode_gif, decode_bmp, _decode_webp, _refuse]
    index = tf.argmax(tf.cast(kinds, tf.int32), output_type=tf.int32)
    image = tf.switch_case(index, [_deferred(decoder, image_bytes) for decoder in decoders])
    return tf.ensure_shape(image, [None, None, 3])


def resize_image(image: tf.Tensor, size: int, resize: str, interpolation: str) -> tf.Tensor:
    """Return `image`, uint8 [H, W, 3], as uint8 [size, size, 3].

    resize: 'stretch' ignores the shape; 'crop' takes the largest square in the middle; 'pad' keeps the
    whole image in the middle of a black square. interpolation: 'bilinear' is antialiased (a triangle
    filter as wide as the reduction), rounded to the nearest value; 'nearest' takes single pixels.
    """
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    if resize == "crop":
        side = tf.minimum(height, width)
        image = tf.slice(image, tf.stack([(height - side) // 2, (width - side) // 2, 0]), [side, side, 3])
    if resize != "pad":
        return tf.ensure_shape(_scaled(image, tf.constant([size, size]), interpolation), [size, size, 3])
    inner = tf.cast(tf.round(size * shape[:2] / tf.reduce_max(shape[:2])), tf.int32)
    inner = tf.clip_by_value(inner, 1, size)
    before = (size - inner) // 2
    margins = tf.concat([tf.stack([before, size - inner - before], axis=1), [[0, 0]]], axis=0)
    return tf.ensure_shape(tf.pad(_scaled(image, inner, interpolation), margins), [size, size, 3])


def decode_and_resize(image_bytes: tf.Tensor, size: int, resize: str, interpolation: str) -> tf.Tensor:
    """Return one encoded image (string scalar) as uint8 [size, size, 3]; see the two functions above.

    A JPEG that is far larger than that is decoded at half, a quarter or an eighth of its size, unless single
    pixels are taken: the resizing after it still makes it four times smaller at least.
    """
    if interpolation == "nearest":
        return resize_image(decode_image(image_bytes), size, resize, interpolation)
    image = decode_image(image_bytes, lambda data: _decode_reduced_jpeg(data, size, resize))
    return resize_image(image, size, resize, interpolation)


def _deferred(decoder: Decoder, image_bytes: tf.Tensor) -> Callable[[], tf.Tensor]:
    return lambda: decoder(image_bytes)


def _decode_jpeg(data: tf.Tensor, ratio: int = 1) -> tf.Tensor:
    # The accurate transform gives the pixels that other decoders give, at 5% of the time.
    image = tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")
    if ratio > 1:
        # The last row and column may be of what the file pads its blocks with: where they are so for the
        # most part they go, as the image would else seem larger than it is.
        sides = tf.cast(tf.round(tf.io.extract_jpeg_shape(data)[:2] / ratio), tf.int32)
        image = image[: sides[0], : sides[1]]
    return orient(image, jpeg_orientation(data))


def _decode_reduced_jpeg(data: tf.Tensor, size: int, resize: str) -> tf.Tensor:
    sides = tf.io.extract_jpeg_shape(data)[:2]
    # Which side becomes `size`: padded to a square it is the longer one, else the shorter one at least.
    side = tf.reduce_max(sides) if resize == "pad" else tf.reduce_min(sides)
    enough = [side >= _LEFT_TO_RESIZE * ratio * size for ratio in _RATIOS[1:]]
    index = tf.reduce_sum(tf.cast(tf.stack(enough), tf.int32))
    return tf.switch_case(index, [_at_ratio(data, ratio) for ratio in _RATIOS])


def _at_ratio(data: tf.Tensor, ratio: int) -> Callable[[], tf.Tensor]:
    return lambda: _decode_jpeg(data, ratio)


def _decode_png(data: tf.Tensor) -> tf.Tensor:
    # With three channels alpha would be dropped, and colours hidden below it would show. With four, an
    # opaque image of less than 8 bits would get an alpha of 1 to 15: so four only where there is alpha.
    colour_type = peek(data, 25, 1)[0]
    before_pixels = tf.strings.split(tf.reshape(data, [1]), b"IDAT", maxsplit=1).values[0]
    has_alpha = (colour_type == 4) | (colour_type == 6) | contains(before_pixels, b"tRNS")
    image = tf.cond(
        has_alpha,
        lambda: _over_white(tf.io.decode_png(data, channels=4)),
        lambda: tf.io.decode_png(data, channels=3),
    )
    return orient(image, png_orientation(data))


def _decode_gif(data: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _decode_webp(data: tf.Tensor) -> tf.Tensor:
    head = peek(data, 12, 9)
    animated = equals(head[:4], b"VP8X") & (head[8] & 0x02 > 0)
    # With an animation the operation writes past its buffer and ends the process, so this comes first.
    with tf.control_dependencies([tf.debugging.Assert(~animated, ["animated WebP is not supported"])]):
        still = tf.identity(data)
    image = tf.squeeze(tf.io.decode_webp(still, channels=0), axis=0)
    image = tf.cond(tf.shape(image)[2] == 4, lambda: _over_white(image), lambda: image)
    return orient(image, webp_orientation(data))


def _refuse(data: tf.Tensor) -> tf.Tensor:
    refusal = tf.debugging.Assert(False, ["not a JPEG, PNG, GIF, BMP or WebP image"])
    with tf.control_dependencies([refusal]):
        return tf.zeros([1, 1, 3], tf.uint8)


def _over_white(image: tf.Tensor) -> tf.Tensor:
    """Lay RGBA uint8 [H, W, 4] over white: RGB uint8 [H, W, 3], rounded to the nearest value."""
    colours, alpha = image[..., :3], image[..., 3:]
    opaque = tf.reduce_all(alpha == 255)
    return tf.cond(opaque, lambda: colours, lambda: _blended(colours, alpha))


def _blended(colours: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    alpha = tf.cast(alpha, tf.int32)
    weighted = tf.cast(colours, tf.int32) * alpha + 255 * (255 - alpha)
    return tf.cast((weighted + 127) // 255, tf.uint8)


def _scaled(image: tf.Tensor, sides: tf.Tensor, interpolation: str) -> tf.Tensor:
    if interpolation == "nearest":
        return tf.image.resize(image, sides, method="nearest")
    scaled = tf.image.resize(image, sides, method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(scaled), 0.0, 255.0), tf.uint8)
