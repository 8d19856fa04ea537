"""Pairs of training images made into one: mixup and CutMix.

In: augmented images, float32 [batch, side, side, 3], and uniform numbers for each. Out: mixed
images, the partner of each, and the share of the loss that its own label keeps. Partners are
neighbours in the batch (0 and 1, 2 and 3, ...), so that any number of replicas makes the same pairs.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.spec import AugmentSpec


def mix_images(
    images: tf.Tensor, draws: tf.Tensor, spec: AugmentSpec
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return mixed images, partners, int32 [batch], and shares, float32 [batch] in 0..1.

    `draws` is [batch, 4] in [0, 1): which mixture if any, the share, and the rectangle's place.
    An image is cut with the probability `spec.cutmix`, blended with `spec.mixup`, else left alone.
    """
    count = tf.shape(images)[0]
    index = tf.range(count)
    # The last image of an odd batch has only itself.
    partners = tf.minimum(tf.bitwise.bitwise_xor(index, 1), count - 1)
    others = tf.gather(images, partners)
    is_cut = draws[:, 0] < spec.cutmix
    is_blended = ~is_cut & (draws[:, 0] < spec.cutmix + spec.mixup)
    cut, cut_shares = _cut(images, others, draws[:, 1], draws[:, 2:4])
    blend_shares = draws[:, 1]
    blended = blend_shares[:, None, None, None] * images
    blended += (1.0 - blend_shares[:, None, None, None]) * others
    mixed = tf.where(is_cut[:, None, None, None], cut, images)
    mixed = tf.where(is_blended[:, None, None, None], blended, mixed)
    shares = tf.where(is_cut, cut_shares, tf.where(is_blended, blend_shares, 1.0))
    return mixed, partners, shares


def _cut(
    images: tf.Tensor, others: tf.Tensor, shares: tf.Tensor, places: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return images with a square of the other one (Yun et al. 2019, "CutMix"), and the area that is left.

    The square's area is 1 - `shares` of the image's; what hangs over the border is cut off.
    """
    side = tf.cast(tf.shape(images)[1], tf.float32)
    half = 0.5 * side * tf.sqrt(1.0 - shares)
    position = tf.range(side)[None, :] + 0.5
    rows, columns = (tf.abs(position - side * places[:, axis, None]) < half[:, None] for axis in (0, 1))
    inside = rows[:, :, None] & columns[:, None, :]
    left = 1.0 - tf.reduce_mean(tf.cast(inside, tf.float32), axis=[1, 2])
    return tf.where(inside[..., None], others, images), left
