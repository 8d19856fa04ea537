"""The training images on the accelerator, where they fit.

In: a split and a cluster. Out: its pixels as a variable on every device of the host, or None. With it a
block carries the numbers of its images and not the images, so that neither the processor nor the bus
stands between an accelerator and its data.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from trainer.cluster import Cluster
from trainer.data.dataset import Split

_SHARE = 0.25
"""Of the smallest device's memory: the rest is for weights, activations and their gradients."""


def fits(split: Split, cluster: Cluster) -> bool:
    """Return whether the images of `split` are to live on the devices of `cluster`."""
    # Several hosts have a share each, and a variable of theirs would be made equal on all of them.
    # Shards are for what is larger than memory, and are read as they come.
    if cluster.device_kind != "GPU" or cluster.count > 1 or split.shards is not None:
        return False
    return math.prod(split.pixels.shape) <= _SHARE * (cluster.memory_bytes or 0)


def resident_images(split: Split, cluster: Cluster) -> tf.Variable | None:
    """Return all images of `split` on each device, uint8 [images, size, size, 3]; None if they don't fit."""
    if not fits(split, cluster):
        return None
    pixels = split.pixels.take(np.arange(len(split.labels)))
    with cluster.strategy.scope():
        return tf.Variable(pixels, trainable=False, name="images")
