"""The training images on the accelerators, where they fit.

In: a split, which of its images this host has, and a cluster. Out: their pixels on every device of the host,
or None. With them a block carries the places of its images and not the images, so that neither the processor
nor the bus stands between an accelerator and its data.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.cluster import Cluster
from trainer.data.dataset import Split

_SHARE = 0.25
"""Of the smallest device's memory: the rest is for weights, activations and their gradients."""


def fits(split: Split, cluster: Cluster) -> bool:
    """Return whether the images of `split`, or this host's share of them, are to live on its devices."""
    # Shards are for what is larger than memory, and are read as they come.
    if cluster.device_kind != "GPU" or split.shards is not None:
        return False
    return math.prod(split.pixels.shape) <= _SHARE * (cluster.memory_bytes or 0) * cluster.count


def put_on_devices(pixels: NDArray[np.uint8], strategy: tf.distribute.Strategy) -> Any:
    """Return uint8 [images, height, width, channels] as one value for each device of this host, all alike.

    Not a variable: it would be made equal on all hosts, and each has other images. What a strategy runs
    gets the value of its device; without replicas it is a plain tensor.
    """
    if strategy.num_replicas_in_sync == 1:
        return tf.constant(pixels)
    devices = strategy.extended.worker_devices

    def put(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        with tf.device(devices[context.replica_id_in_sync_group % len(devices)]):
            return tf.constant(pixels)

    return strategy.experimental_distribute_values_from_function(put)
