"""Device cache for the training images, if they fit into the memory of the accelerators.

The images of this host are copied to each of its devices. Blocks then contain indices instead of images,
which avoids preparing them on the CPU and copying them to the devices.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.data.dataset import Split
from trainer.distributed.devices import Cluster

_MEMORY_SHARE = 0.25
"""Share of the smallest device's memory; the rest is for weights, activations and gradients."""


def fits_in_device_cache(split: Split, cluster: Cluster) -> bool:
    """Return whether the images of `split`, or this host's share of them, fit into the device cache."""
    # Shards are for data that is larger than memory, and are read in a stream.
    if cluster.device_kind != "GPU" or split.shards is not None:
        return False
    return (
        math.prod(split.pixels.shape) <= _MEMORY_SHARE * (cluster.memory_bytes or 0) * cluster.process_count
    )


def put_on_devices(pixels: NDArray[np.uint8], strategy: tf.distribute.Strategy) -> Any:
    """Copy uint8 [images, height, width, channels] to each device of this host; return a per-replica value.

    It is not a variable, whose value would be the same on all hosts: each host has other images. Code that a
    strategy runs gets the value of its device; with one replica the result is a plain tensor.
    """
    if strategy.num_replicas_in_sync == 1:
        return tf.constant(pixels)
    devices = strategy.extended.worker_devices

    def put(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        with tf.device(devices[context.replica_id_in_sync_group % len(devices)]):
            return tf.constant(pixels)

    return strategy.experimental_distribute_values_from_function(put)
