"""Inference over a split: batches spread over the devices and processes of a run.

Each process computes its share of the images on all its devices, and every process gets the outputs of all.
No image is padded, dropped or counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.cluster import Cluster
from trainer.data.dataset import Split
from trainer.exits import StoppedError
from trainer.hosts import Peers, Place
from trainer.model.pretrained import has_backbone

_BATCH = 100
_BACKBONE_BATCH = 8
"""Of a pretrained backbone on a CPU, whose feature maps then stay in its cache: at 224 pixels it computes 55
images a second a core, and 14 with batches of 100 (EfficientNet-Lite0, 2026-11-30, Xeon with AVX512)."""
_BATCH_BYTES = 64 << 20
"""Of float32 pixels; large images are computed in smaller batches."""
_TURNS_APART = 8
"""Batches between two checks of whether another process has to stop."""
_STOP = b"stop"

Rows = NDArray[np.integer]


def _never() -> bool:
    return False


def batches_of(
    count: int, shape: tuple[int, ...], most: int = _BATCH, devices: int = 1
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the indices of `count` images of `shape`, `most` a device at a time."""
    batch = devices * max(1, min(most, _BATCH_BYTES // (4 * math.prod(shape))))
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
        """Without a `cluster` the first device of this process computes everything.

        finish: applied to the outputs of a batch, [batch, width] to [batch, width] of `dtype`.
        """
        self.model, self.peers = model, cluster.peers if cluster else Peers(Place())
        self.strategy = cluster.strategy if cluster else tf.distribute.get_strategy()
        self._finish, self._dtype = finish, dtype
        is_slow = has_backbone(model) and (cluster is None or cluster.device_kind == "CPU")
        self._most = _BACKBONE_BATCH if is_slow else _BATCH
        self._replicas = self.strategy.num_replicas_in_sync // self.peers.place.count
        pixels = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)
        self._outputs = tf.function(self._compute, input_signature=[pixels], autograph=False)

    def outputs(
        self,
        split: Split,
        is_stopped: Callable[[], bool] = _never,
        compute: Callable[[Rows], NDArray[Any]] | None = None,
    ) -> NDArray[Any]:
        """Return the outputs for all images of `split`, [images, width], on every process.

        compute: used for a batch of rows in the place of `self.batch`. Raises StoppedError once `is_stopped`
        returns True on any process.
        """
        place = self.peers.place
        owners = split.owners(place.count)
        own, parts = np.flatnonzero(owners == place.index), []
        split.pixels.follow(own)
        shape, counts = split.pixels.shape[1:], np.bincount(owners, minlength=place.count)
        # As many turns on all processes, so that all can say in each whether they have to stop.
        turns = max(len(list(self._batches(int(each), shape))) for each in counts)
        mine = [*self._batches(len(own), shape)]
        for turn in range(turns):
            self._require_going(turn, is_stopped())
            if turn < len(mine):
                rows = own[mine[turn]]
                parts.append(self.batch(split, rows) if compute is None else compute(rows))
        return self._joined(parts, owners)

    def _batches(self, count: int, shape: tuple[int, ...]) -> Iterator[NDArray[np.int64]]:
        return batches_of(count, shape, self._most, self._replicas)

    def batch(self, split: Split, rows: Rows) -> NDArray[Any]:
        """Return the outputs for the images in `rows`, computed by this process."""
        # Each device has as many rows as the others; the last image fills up what is missing.
        filled = np.append(rows, np.repeat(rows[-1:], -len(rows) % self._replicas))
        outputs: NDArray[Any] = self._outputs(tf.constant(split.pixels.take(filled))).numpy()
        return outputs[: len(rows)]

    def _require_going(self, turn: int, is_stopped: bool) -> None:
        """Raise StoppedError if this process has to stop or, asked every few turns, another one."""
        if self.peers.place.count > 1:
            if turn % _TURNS_APART:
                return
            is_stopped = any(each == _STOP for each in self.peers.exchange(_STOP if is_stopped else b""))
        if is_stopped:
            raise StoppedError("Stopped on request during the evaluation.")

    def _joined(self, parts: list[NDArray[Any]], owners: NDArray[np.int64]) -> NDArray[Any]:
        """Return the outputs of all processes, in the order of the images."""
        width = self.model.output_shape[-1]
        joined = np.empty((len(owners), width), self._dtype)
        for index, data in enumerate(self.peers.exchange(b"".join(part.tobytes() for part in parts))):
            joined[owners == index] = np.frombuffer(data, self._dtype).reshape(-1, width)
        return joined

    def _compute(self, pixels: tf.Tensor) -> tf.Tensor:
        """Return the outputs for all rows, which all devices of this process share."""
        if self._replicas == 1 and not isinstance(self.strategy, tf.distribute.TPUStrategy):
            outputs = self._forward(pixels)
        else:
            done = self.strategy.run(self._share_of_replica, args=(pixels,))
            outputs = tf.concat(self.strategy.experimental_local_results(done), axis=0)
        return self._finish(outputs)

    def _share_of_replica(self, pixels: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group % self._replicas
        shares = tf.reshape(pixels, tf.concat([[self._replicas, -1], tf.shape(pixels)[1:]], axis=0))
        return self._forward(tf.ensure_shape(tf.gather(shares, replica), pixels.shape))

    def _forward(self, pixels: tf.Tensor) -> tf.Tensor:
        return self.model(tf.cast(pixels, tf.float32), training=False)
