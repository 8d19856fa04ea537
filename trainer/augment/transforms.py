"""Random image augmentation: stateless tensor operations, seeded by the position in the global batch.

Inputs are images [batch, height, width, channels], uint8 or float, in 0..255, and one row of uniform numbers
per image. Outputs are float32 images in 0..255, of the same or another size. Saturation and hue do not apply
to grey images. The alpha channel of RGBA is only moved and erased, its values do not change otherwise.

The numbers of a step are drawn for the whole global batch, so an image is changed in the same way on any
number of replicas. All operations are dense arithmetic, which runs on CPUs, GPUs and TPUs; only rotation
needs a kernel that XLA lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from trainer.augment.random import normal, uniform
from trainer.spec import AugmentSpec, CropSpec, sides_of

DRAWS = 24
"""Number of uniform numbers per image and step, used or not."""
MIX_DRAWS = slice(20, 24)
"""The numbers reserved for mixup and CutMix."""
# Luma of ITU-R BT.601, which JPEG uses.
_LUMA = (0.299, 0.587, 0.114)
# RGB to YIQ (NTSC); hue is the angle in the I-Q plane.
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class EpochView(NamedTuple):
    """Size and crop mode of the training images in one epoch."""

    height: int
    width: int
    is_cropped: bool = True
    """Whether `augment.crop` takes random crops; otherwise images are used whole."""


def draw_numbers(seed: int, step: tf.Tensor, global_batch_size: int | tf.Tensor) -> tf.Tensor:
    """Return uniform numbers in [0, 1), float32 [global batch, DRAWS], a pure function of its arguments."""
    return uniform([global_batch_size, DRAWS], tf.stack([tf.cast(seed, tf.int64), step]))


def augment_images(
    images: tf.Tensor,
    draws: tf.Tensor,
    spec: AugmentSpec,
    view: EpochView,
    is_mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Return augmented images, float32 [batch, height and width of `view`, channels] in 0..255.

    `images` are [batch, height, width, channels] in 0..255 and `draws` [batch, DRAWS] in [0, 1). Without a
    crop, the view must have the size of the images. `is_mirrored`, bool [batch], selects the images that
    alternating flips mirror in this epoch; see `trainer.training.prefetch`.
    """
    images = tf.cast(images, tf.float32)
    if spec.rotate_degrees:
        images = rotate(images, _spread(draws[:, 0], spec.rotate_degrees))
    images = _crop_and_flip(images, draws[:, 1:7], spec, view, is_mirrored)
    if spec.brightness or spec.contrast or spec.saturation or spec.hue:
        images = _change_colour_channels(images, lambda colours: _jitter(colours, draws[:, 7:11], spec))
    if spec.noise:
        stddev = draws[:, 11] * spec.noise
        images = _change_colour_channels(images, lambda colours: add_noise(colours, stddev, draws[:, 12:14]))
    if spec.erase:
        images = erase(images, draws[:, 14:19], spec.erase)
    return images


def find_view(spec: AugmentSpec, image_size: int | tuple[int, int], epoch: int, epochs: int) -> EpochView:
    """Return the size and crop mode of training images in `epoch`, counted from 0.

    With `crop.first_size` the size grows in steps of 16 pixels over the first three quarters of the training:
    small images teach coarse features at a fraction of the cost (Howard 2018; Tan and Le 2021,
    "EfficientNetV2"). The last `crop.whole_epochs` use whole images, as evaluation does: objects are larger
    in random crops, to which a network adapts (Touvron et al. 2019, "Fixing the train-test resolution
    discrepancy").
    """
    sides = sides_of(image_size)
    shorter = min(sides)
    if spec.crop is None or epoch >= epochs - spec.crop.whole_epochs:
        return EpochView(*sides, is_cropped=False)
    last = spec.crop.size or shorter
    first = spec.crop.first_size or last
    progress = min(1.0, epoch / max(1.0, 0.75 * epochs))
    grown = first + (last - first) * progress
    side = last if progress >= 1.0 else min(last, max(first, 16 * round(grown / 16)))
    return EpochView(round(side * sides[0] / shorter), round(side * sides[1] / shorter))


def resample(images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, height: tf.Tensor, width: tf.Tensor,
             mirrored: tf.Tensor, flipped: tf.Tensor, sides: tuple[int, int]) -> tf.Tensor:  # fmt: skip
    """Return a rectangle of each image, resized to [batch, *sides, channels] with antialiasing.

    `top`, `left`, `height` and `width` are float32 [batch], in pixels; `mirrored` and `flipped` are bool
    [batch]. Resizing by a triangle filter is separable, so it is two matrix products, as in
    `tf.image.resize(antialias=True)` but with a separate rectangle per image.
    """
    rows = _resize_weights(top, height, flipped, images.shape[1] or tf.shape(images)[1], sides[0])
    columns = _resize_weights(left, width, mirrored, images.shape[2] or tf.shape(images)[2], sides[1])
    images = tf.einsum("bij,bjkc->bikc", rows, images)
    return tf.einsum("bxk,bikc->bixc", columns, images)


def rotate(images: tf.Tensor, angles: tf.Tensor) -> tf.Tensor:
    """Return images rotated about their centres by `angles`, float32 [batch] in radians.

    Areas outside of the image are filled by reflection.
    """
    size = tf.cast(tf.shape(images)[1:3], tf.float32)
    cos, sin = tf.cos(angles), tf.sin(angles)
    y, x = (size[0] - 1.0) / 2.0, (size[1] - 1.0) / 2.0
    zero = tf.zeros_like(angles)
    matrix = tf.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, zero, zero], axis=1)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=matrix,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )


def translate(images: tf.Tensor, draws: tf.Tensor, pixels: int) -> tf.Tensor:
    """Return images shifted by up to `pixels` whole pixels along each axis, with reflection padding.

    `images` are float32 [batch, height, width, channels] and larger than `pixels`; `draws` is [batch, 2] in
    [0, 1).
    """
    shifts = tf.cast(tf.floor(draws * (2 * pixels + 1)), tf.int32) - pixels
    for axis in (1, 2):
        last = tf.shape(images)[axis] - 1
        source = tf.abs(tf.range(last + 1)[None, :] - shifts[:, axis - 1, None])  # the edge is not repeated
        images = tf.gather(images, last - tf.abs(last - source), axis=axis, batch_dims=1)
    return images


def change_colors(images: tf.Tensor, brightness: tf.Tensor, contrast: tf.Tensor, saturation: tf.Tensor,
                  hue: tf.Tensor) -> tf.Tensor:  # fmt: skip
    """Return images with changed colours, float32 [batch, height, width, 3 or 1] in 0..255.

    `images` have the same shape and range. All other arguments are float32 [batch]: `brightness` is added (1
    is white), `contrast` and `saturation` multiply the distance to the image's mean grey and to the pixel's
    own grey, and `hue` rotates the I-Q plane of YIQ (1 is a full turn). Together they are one 3 x 3 matrix
    and one offset per image. Saturation and hue of grey images are not changed.
    """
    matrix, luma = contrast[:, None, None], tf.constant((1.0,))
    if images.shape[-1] == 3:
        matrix *= tf.matmul(_saturation_matrix(saturation), _hue_matrix(hue))
        luma = tf.constant(_LUMA)
    grey = tf.reduce_mean(tf.tensordot(images, luma, 1), axis=[1, 2])
    offset = (1.0 - contrast) * grey + 255.0 * brightness
    changed = tf.einsum("bij,bhwj->bhwi", matrix, images) + offset[:, None, None, None]
    return tf.clip_by_value(changed, 0.0, 255.0)


def _saturation_matrix(saturation: tf.Tensor) -> tf.Tensor:
    grey = tf.tile(tf.constant(_LUMA)[None, None, :], [1, 3, 1])
    factor = saturation[:, None, None]
    return factor * tf.eye(3)[None] + (1.0 - factor) * grey


def _hue_matrix(hue: tf.Tensor) -> tf.Tensor:
    angle = 2.0 * math.pi * hue
    cos, sin, one, zero = tf.cos(angle), tf.sin(angle), tf.ones_like(hue), tf.zeros_like(hue)
    turn = tf.reshape(tf.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=1), [-1, 3, 3])
    to_yiq = tf.constant(_TO_YIQ)
    return tf.linalg.inv(to_yiq)[None] @ turn @ to_yiq[None]


def add_noise(images: tf.Tensor, stddev: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Return images with Gaussian noise of `stddev`, float32 [batch], where 1 is white.

    `draws`, [batch, 2] in [0, 1), are the seed of each image's noise.
    """
    seeds = tf.cast(draws * 2.0**31, tf.int32)

    def noise(seed: tf.Tensor) -> tf.Tensor:
        return normal(tf.shape(images)[1:], seed)

    noises = tf.map_fn(noise, seeds, fn_output_signature=tf.float32)
    return tf.clip_by_value(images + 255.0 * stddev[:, None, None, None] * noises, 0.0, 255.0)


def erase(images: tf.Tensor, draws: tf.Tensor, probability: float) -> tf.Tensor:
    """Return images of which some have a grey rectangle (Zhong et al. 2017, "Random Erasing").

    `draws` is [batch, 5] in [0, 1): whether, area (2% to 33%), log of the aspect ratio (0.3 to 3.3), and
    position.
    """
    sides = sides_as_floats(images)
    area = 0.02 + 0.31 * draws[:, 1]
    root = tf.exp(0.5 * math.log(3.3) * (2.0 * draws[:, 2] - 1.0))
    lengths = [
        tf.minimum(side, side * tf.sqrt(area) * ratio)
        for side, ratio in zip(sides, (root, 1.0 / root), strict=True)
    ]
    rows, columns = (
        band(draws[:, 3 + axis] * (side - length), length, side)
        for axis, (side, length) in enumerate(zip(sides, lengths, strict=True))
    )
    is_erased = tf.cast(draws[:, 0] < probability, tf.float32)
    return paint_rectangle(images, rows * is_erased[:, None], columns, 127.5)


def paint_rectangle(
    images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor, paint: tf.Tensor | float
) -> tf.Tensor:
    """Return `images` blended with `paint` by the mask `rows` x `columns`: 1 is paint, 0 the image.

    Images and paint are float32 [batch, height, width, channels], `rows` [batch, height] and `columns`
    [batch, width] in 0..1. It is a product because `tf.where` with a broadcast mask took five times as long.
    """
    shape = tf.shape(images)
    mask = rows[:, :, None] * tf.repeat(columns, images.shape[-1], axis=1)[:, None, :]
    mask = tf.reshape(mask, shape)
    return images * (1.0 - mask) + paint * mask


def band(start: tf.Tensor, length: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Return 1 for pixels with the centre within `length` from `start`, else 0, float32 [batch, size].

    `start` and `length` are float32 [batch], in pixels; parts outside of the image are cut off.
    """
    position = tf.range(size)[None, :] + 0.5
    is_inside = (position >= start[:, None]) & (position < (start + length)[:, None])
    return tf.cast(is_inside, tf.float32)


def sides_as_floats(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return height and width of `images`, float32 scalars: the same tensor for square images.

    With one tensor, TensorFlow optimizes the graph of square images identically, to the last bit.
    """
    height = tf.cast(tf.shape(images)[1], tf.float32)
    if images.shape[1] is not None and images.shape[1] == images.shape[2]:
        return height, height
    return height, tf.cast(tf.shape(images)[2], tf.float32)


def _change_colour_channels(images: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Apply `change` to the colours of `images`, which are all channels but the alpha of RGBA."""
    if images.shape[-1] != 4:
        return change(images)
    return tf.concat([change(images[..., :3]), images[..., 3:]], axis=-1)


def _crop_and_flip(
    images: tf.Tensor, draws: tf.Tensor, spec: AugmentSpec, view: EpochView, is_mirrored: tf.Tensor | None
) -> tf.Tensor:
    mirrored = (draws[:, 0] < 0.5) & (spec.flip != "none")
    if spec.flip == "alternating" and is_mirrored is not None:
        mirrored = is_mirrored
    flipped = (draws[:, 1] < 0.5) & (spec.flip == "both")
    if spec.crop is None or not view.is_cropped:
        images = _flip(images, mirrored, flipped)
        return translate(images, draws[:, 4:6], spec.translate_pixels) if spec.translate_pixels else images
    whole = sides_as_floats(images)
    height, width = _cropped_sides(draws[:, 2], draws[:, 3], spec.crop, whole)
    top, left = draws[:, 4] * (whole[0] - height), draws[:, 5] * (whole[1] - width)
    return resample(images, top, left, height, width, mirrored, flipped, view[:2])


def _flip(images: tf.Tensor, mirrored: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
    images = tf.where(mirrored[:, None, None, None], tf.reverse(images, [2]), images)
    return tf.where(flipped[:, None, None, None], tf.reverse(images, [1]), images)


def _cropped_sides(
    area: tf.Tensor, ratio: tf.Tensor, spec: CropSpec, whole: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return height and width in pixels, each limited to the size of the image."""
    area = spec.scale[0] + (spec.scale[1] - spec.scale[0]) * area
    low, high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    root = tf.exp(0.5 * (low + (high - low) * ratio))
    return (
        tf.minimum(whole[0], whole[0] * tf.sqrt(area) / root),
        tf.minimum(whole[1], whole[1] * tf.sqrt(area) * root),
    )


def _resize_weights(
    start: tf.Tensor, length: tf.Tensor, reversed_: tf.Tensor, size: int | tf.Tensor, side: int
) -> tf.Tensor:
    """Return the weight of each source pixel in each target pixel, [batch, side, size]."""
    scale = length / side
    target = tf.range(side, dtype=tf.float32)
    target = tf.where(reversed_[:, None], side - 1.0 - target, target) + 0.5
    centre = start[:, None] + target * scale[:, None]
    source = tf.range(tf.cast(size, tf.float32)) + 0.5
    distance = tf.abs(source[None, None, :] - centre[:, :, None])
    weights = tf.maximum(0.0, 1.0 - distance / tf.maximum(scale, 1.0)[:, None, None])
    # Normalized, because the filter extends beyond the border of the image.
    return weights / tf.maximum(tf.reduce_sum(weights, axis=2, keepdims=True), 1e-6)


def _jitter(images: tf.Tensor, draws: tf.Tensor, spec: AugmentSpec) -> tf.Tensor:
    return change_colors(
        images,
        brightness=(2.0 * draws[:, 0] - 1.0) * spec.brightness,
        contrast=1.0 + (2.0 * draws[:, 1] - 1.0) * spec.contrast,
        saturation=1.0 + (2.0 * draws[:, 2] - 1.0) * spec.saturation,
        hue=(2.0 * draws[:, 3] - 1.0) * spec.hue,
    )


def _spread(draws: tf.Tensor, degrees: float) -> tf.Tensor:
    return (2.0 * draws - 1.0) * math.radians(degrees)


def mix_images(
    images: tf.Tensor, draws: tf.Tensor, spec: AugmentSpec
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return mixed images, partners, int32 [batch], and shares, float32 [batch] in 0..1.

    `images` are augmented, float32 [batch, height, width, channels]. `draws` is [batch, 4] in [0, 1): which
    mixture if any, the share, and the position of the rectangle. CutMix is applied with probability
    `spec.cutmix`, mixup with `spec.mixup`. A share is the part of the loss that belongs to the image's own
    label.
    """
    count, sides = tf.shape(images)[0], sides_as_floats(images)
    # The last image of an odd batch is its own partner.
    partners = tf.minimum(tf.bitwise.bitwise_xor(tf.range(count), 1), count - 1)
    is_cut = draws[:, 0] < spec.cutmix
    is_blended = ~is_cut & (draws[:, 0] < spec.cutmix + spec.mixup)
    # A rectangle of the area 1 - share is cut off at the border (Yun et al. 2019, "CutMix").
    lengths = [side * tf.sqrt(1.0 - draws[:, 1]) for side in sides]
    rows, columns = (
        band(side * draws[:, 2 + axis] - 0.5 * length, length, side)
        for axis, (side, length) in enumerate(zip(sides, lengths, strict=True))
    )
    # Mixup is a rectangle as large as the image, painted with partial opacity.
    blend = tf.where(is_blended, 1.0 - draws[:, 1], 0.0)[:, None]
    rows = tf.where(is_cut[:, None], rows, blend)
    columns = tf.where(is_cut[:, None], columns, 1.0)
    mixed = paint_rectangle(images, rows, columns, tf.gather(images, partners))
    shares = 1.0 - tf.reduce_mean(rows, axis=1) * tf.reduce_mean(columns, axis=1)
    return mixed, partners, shares
