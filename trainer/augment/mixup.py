"""Mixing of pairs of training images: mixup and CutMix.

Partners are neighbours in the batch (0 and 1, 2 and 3, ...), so any number of replicas makes the same pairs.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.augment.transforms import band, paint_rectangle, sides_as_floats
from trainer.spec import AugmentSpec


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
