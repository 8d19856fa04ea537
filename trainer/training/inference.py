"""Distributed inference over a split.

Each process computes its share of the images on all its devices, and an all-gather gives the outputs to every
process. No image is dropped or counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.data.dataset import Split
from trainer.distributed import ProcessGroup, ProcessInfo
from trainer.distributed.devices import Cluster
from trainer.errors import StoppedError
from trainer.model.pretrained import has_backbone

_BATCH = 100
_BACKBONE_BATCH = 8
"""Batch size of a pretrained backbone on a CPU; the feature maps then fit into the CPU cache.

At 224 pixels it computes 55 images per second per core, against 14 with batches of 100 (EfficientNet-Lite0,
2026-11-30, Xeon with AVX512).
"""
_BATCH_BYTES = 64 << 20
"""Limit for the float32 pixels of a batch; large images use smaller batches."""
_TURNS_BETWEEN_CHECKS = 8
"""Number of batches between two checks whether another process has to stop."""
_STOP = b"stop"

Rows = NDArray[np.integer]


def _never() -> bool:
    return False


def batches_of(
    count: int, shape: tuple[int, ...], max_per_device: int = _BATCH, devices: int = 1
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the indices of `count` images of `shape` in batches of at most `max_per_device` per device."""
    batch = devices * max(1, min(max_per_device, _BATCH_BYTES // (4 * math.prod(shape))))
    for start in range(0, count, batch):
        yield np.arange(start, min(start + batch, count))


class Inference:
    """Computes one model's outputs for the images of splits; compiled once."""

    def __init__(
        self,
        model: keras.Model,
        cluster: Cluster | None = None,
        finish: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        """Without a `cluster` everything is computed on the first device of this process.

        finish: applied to the outputs of a batch, [batch, width] to [batch, width] of `dtype`.
        """
        self.model, self.group = model, cluster.group if cluster else ProcessGroup(ProcessInfo())
        self.strategy = cluster.strategy if cluster else tf.distribute.get_strategy()
        self._finish, self._dtype = finish, dtype
        is_slow = has_backbone(model) and (cluster is None or cluster.device_kind == "CPU")
        self._max_per_device = _BACKBONE_BATCH if is_slow else _BATCH
        self._replicas = self.strategy.num_replicas_in_sync // self.group.process.process_count
        pixels = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)
        self._outputs = tf.function(self._compute, input_signature=[pixels], autograph=False)

    def outputs(
        self,
        split: Split,
        is_stopped: Callable[[], bool] = _never,
        compute: Callable[[Rows], NDArray[Any]] | None = None,
    ) -> NDArray[Any]:
        """Return the outputs for all images of `split`, [images, width], on every process.

        compute: replaces `self.batch` for a batch of rows. Raises StoppedError once `is_stopped` returns True
        on any process.
        """
        process = self.group.process
        owners = split.owners(process.process_count)
        own, parts = np.flatnonzero(owners == process.process_index), []
        split.pixels.prefetch(own)
        shape, counts = split.pixels.shape[1:], np.bincount(owners, minlength=process.process_count)
        # All processes do the same number of turns, because each check for a stop is a collective.
        turns = max(len(list(self._batches(int(count), shape))) for count in counts)
        batches = [*self._batches(len(own), shape)]
        for turn in range(turns):
            self._raise_if_stopped(turn, is_stopped())
            if turn < len(batches):
                rows = own[batches[turn]]
                parts.append(self.batch(split, rows) if compute is None else compute(rows))
        return self._gather_outputs(parts, owners)

    def _batches(self, count: int, shape: tuple[int, ...]) -> Iterator[NDArray[np.int64]]:
        return batches_of(count, shape, self._max_per_device, self._replicas)

    def batch(self, split: Split, rows: Rows) -> NDArray[Any]:
        """Return the outputs for the images in `rows`, computed by this process."""
        # All devices need the same number of rows; copies of the last image pad the batch.
        filled = np.append(rows, np.repeat(rows[-1:], -len(rows) % self._replicas))
        outputs: NDArray[Any] = self._outputs(tf.constant(split.pixels.gather(filled))).numpy()
        return outputs[: len(rows)]

    def of_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the outputs for images, uint8 [images, height, width, channels], on this process alone.

        Not for an inference with a cluster of several devices.
        """
        batches = self._batches(len(pixels), pixels.shape[1:])
        return np.concatenate([self._outputs(tf.constant(pixels[rows])).numpy() for rows in batches])

    def _raise_if_stopped(self, turn: int, is_stopped: bool) -> None:
        """Raise StoppedError if this or another process has to stop; others are checked every few turns."""
        if self.group.process.process_count > 1:
            if turn % _TURNS_BETWEEN_CHECKS:
                return
            is_stopped = _STOP in self.group.all_gather(_STOP if is_stopped else b"")
        if is_stopped:
            raise StoppedError("Stopped on request during the evaluation.")

    def _gather_outputs(self, parts: list[NDArray[Any]], owners: NDArray[np.int64]) -> NDArray[Any]:
        """Return the outputs of all processes, in the order of the images."""
        width = self.model.output_shape[-1]
        joined = np.empty((len(owners), width), self._dtype)
        for index, data in enumerate(self.group.all_gather(b"".join(part.tobytes() for part in parts))):
            joined[owners == index] = np.frombuffer(data, self._dtype).reshape(-1, width)
        return joined

    def _compute(self, pixels: tf.Tensor) -> tf.Tensor:
        """Return the outputs for all rows, which are split among the devices of this process."""
        if self._replicas == 1 and not isinstance(self.strategy, tf.distribute.TPUStrategy):
            outputs = self._forward(pixels)
        else:
            results = self.strategy.run(self._compute_share, args=(pixels,))
            outputs = tf.concat(self.strategy.experimental_local_results(results), axis=0)
        return self._finish(outputs)

    def _compute_share(self, pixels: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group % self._replicas
        shares = tf.reshape(pixels, tf.concat([[self._replicas, -1], tf.shape(pixels)[1:]], axis=0))
        return self._forward(tf.ensure_shape(tf.gather(shares, replica), pixels.shape))

    def _forward(self, pixels: tf.Tensor) -> tf.Tensor:
        return self.model(tf.cast(pixels, tf.float32), training=False)
