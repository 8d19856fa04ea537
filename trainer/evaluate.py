"""A model and a split to predictions.

In: a model that gives logits, and the pixels of a split. Out: `Predictions`, one row an
image, from which every metric is computed. No image is padded, dropped or counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.cluster import Cluster
from trainer.data.dataset import Dataset, Split
from trainer.exits import StoppedError
from trainer.hosts import Peers, Place
from trainer.metrics import Predictions

_BATCH = 100
_BATCH_BYTES = 64 << 20
"""Of float32 pixels; large images go through in smaller batches."""
_TURNS_APART = 8
"""Of the processes' questions whether anyone has to stop."""
_STOP = b"stop"


def batches_of(
    count: int, shape: tuple[int, int, int], most: int = _BATCH, devices: int = 1
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the indices of `count` images of `shape`, `most` a device at a time."""
    batch = devices * max(1, min(most, _BATCH_BYTES // (4 * math.prod(shape))))
    for start in range(0, count, batch):
        yield np.arange(start, min(start + batch, count))


class Evaluator:
    """Runs one model on splits; compiled once."""

    def __init__(self, model: keras.Model, cluster: Cluster | None = None) -> None:
        """Each process of the `cluster` answers for its share, on all its devices, and gets all answers.

        Without one it is the first device of this process alone.
        """
        self.model, self.peers = model, cluster.peers if cluster else Peers(Place())
        self.strategy = cluster.strategy if cluster else tf.distribute.get_strategy()
        self._replicas = self.strategy.num_replicas_in_sync // self.peers.place.count
        pixels = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)
        self._probabilities = tf.function(self._compute, input_signature=[pixels])

    def predict(
        self, split: Split, class_names: tuple[str, ...], is_stopped: Callable[[], bool] = lambda: False
    ) -> Predictions:
        """Return the predictions for every image of `split`, in its order.

        Raises StoppedError as soon as `is_stopped` returns True.
        """
        return Predictions(
            split=split.name,
            names=tuple(item.name for item in split.items),
            labels=split.labels,
            probabilities=self._answers(split, is_stopped),
            class_names=class_names,
        )

    def _answers(self, split: Split, is_stopped: Callable[[], bool]) -> np.ndarray[Any, Any]:
        """Return the probabilities of all images of `split`, float64 [images, classes]."""
        place = self.peers.place
        owners = split.owners(place.count)
        own, parts = np.flatnonzero(owners == place.index), []
        split.pixels.follow(own)
        shape, counts = split.pixels.shape[1:], np.bincount(owners, minlength=place.count)
        # As many turns on all processes, so that all can say in each whether they have to stop.
        turns = max(len(list(batches_of(int(each), shape, devices=self._replicas))) for each in counts)
        mine = [*batches_of(len(own), shape, devices=self._replicas)]
        for turn in range(turns):
            self._require_going(turn, is_stopped())
            if turn < len(mine):
                parts.append(self._answers_to(split, own[mine[turn]]))
        return self._joined(parts, owners)

    def _answers_to(self, split: Split, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # Each device has as many rows as the others; the last image fills up what is missing.
        filled = np.append(rows, np.repeat(rows[-1:], -len(rows) % self._replicas))
        answers: np.ndarray[Any, Any] = self._probabilities(tf.constant(split.pixels.take(filled))).numpy()
        return answers[: len(rows)]

    def _require_going(self, turn: int, is_stopped: bool) -> None:
        """Raise StoppedError if this process has to stop or, asked every few turns, another one."""
        if self.peers.place.count > 1:
            if turn % _TURNS_APART:
                return
            is_stopped = any(each == _STOP for each in self.peers.exchange(_STOP if is_stopped else b""))
        if is_stopped:
            raise StoppedError("Stopped on request during the evaluation.")

    def _joined(
        self, parts: list[np.ndarray[Any, Any]], owners: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """Return the answers of all processes, in the order of the images."""
        classes = self.model.output_shape[-1]
        joined = np.empty((len(owners), classes), np.float64)
        for index, data in enumerate(self.peers.exchange(b"".join(part.tobytes() for part in parts))):
            joined[owners == index] = np.frombuffer(data, np.float64).reshape(-1, classes)
        return joined

    def loss_and_accuracy(
        self, split: Split, is_stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Return the mean cross-entropy and the accuracy on the whole of `split`; stops as `predict` does."""
        probabilities = self._answers(split, is_stopped)
        chosen = probabilities[np.arange(len(split.labels)), split.labels]
        return {
            "loss": float(-np.mean(np.log(np.maximum(chosen, np.finfo(np.float64).eps)))),
            "accuracy": float(np.mean(np.argmax(probabilities, axis=1) == split.labels)),
        }

    def _compute(self, pixels: tf.Tensor) -> tf.Tensor:
        """Return the answers to all rows, which all devices of this process share."""
        if self._replicas == 1 and not isinstance(self.strategy, tf.distribute.TPUStrategy):
            logits = self._logits(pixels)
        else:
            done = self.strategy.run(self._share_of_replica, args=(pixels,))
            logits = tf.concat(self.strategy.experimental_local_results(done), axis=0)
        # float64, so that rows sum to one and a sure answer is not rounded to 0 or 1.
        return tf.nn.softmax(tf.cast(logits, tf.float64))

    def _share_of_replica(self, pixels: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group % self._replicas
        shares = tf.reshape(pixels, tf.concat([[self._replicas, -1], tf.shape(pixels)[1:]], axis=0))
        return self._logits(tf.ensure_shape(tf.gather(shares, replica), pixels.shape))

    def _logits(self, pixels: tf.Tensor) -> tf.Tensor:
        return self.model(tf.cast(pixels, tf.float32), training=False)


def predict_splits(evaluator: Evaluator, dataset: Dataset) -> dict[str, Predictions]:
    """Return the predictions for every split of `dataset`, by split name."""
    return {name: evaluator.predict(split, dataset.class_names) for name, split in dataset.splits.items()}
