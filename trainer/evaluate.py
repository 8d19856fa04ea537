"""A model and a split to predictions.

In: a model that gives logits, and the pixels of a split. Out: `Predictions`, one row an
image, from which every metric is computed. No image is padded, dropped or counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.cluster import Cluster
from trainer.data.dataset import Dataset, Split
from trainer.data.items import THRESHOLDS
from trainer.exits import StoppedError
from trainer.hosts import Peers, Place
from trainer.metrics import AnyPredictions, predictions_of
from trainer.multilabel.predictions import MultiLabelPredictions
from trainer.multilabel.thresholds import choose_thresholds
from trainer.objective import SINGLE, Objective

_BATCH = 100
_BATCH_BYTES = 64 << 20
"""Of float32 pixels; large images go through in smaller batches."""
_TURNS_APART = 8
"""Of the processes' questions whether anyone has to stop."""
_STOP = b"stop"


def batches_of(
    count: int, image_size: int, most: int = _BATCH, devices: int = 1
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the indices of `count` images of `image_size` pixels a side, `most` a device at a time."""
    batch = devices * max(1, min(most, _BATCH_BYTES // (4 * 3 * image_size**2)))
    for start in range(0, count, batch):
        yield np.arange(start, min(start + batch, count))


class Evaluator:
    """Runs one model on splits; compiled once."""

    def __init__(
        self, model: keras.Model, cluster: Cluster | None = None, objective: Objective = SINGLE
    ) -> None:
        """Each process of the `cluster` answers for its share, on all its devices, and gets all answers.

        Without one it is the first device of this process alone.
        """
        self.model, self.peers = model, cluster.peers if cluster else Peers(Place())
        self.objective = objective
        self.strategy = cluster.strategy if cluster else tf.distribute.get_strategy()
        self._replicas = self.strategy.num_replicas_in_sync // self.peers.place.count
        pixels = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)
        self._probabilities = tf.function(self._compute, input_signature=[pixels])

    def predict(
        self, split: Split, class_names: tuple[str, ...], is_stopped: Callable[[], bool] = lambda: False
    ) -> AnyPredictions:
        """Return the predictions for every image of `split`, in its order.

        Raises StoppedError as soon as `is_stopped` returns True.
        """
        return predictions_of(
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
        side, counts = split.pixels.shape[1], np.bincount(owners, minlength=place.count)
        # As many turns on all processes, so that all can say in each whether they have to stop.
        turns = max(len(list(batches_of(int(each), side, devices=self._replicas))) for each in counts)
        mine = [*batches_of(len(own), side, devices=self._replicas)]
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
        """Return the mean cross-entropy and the accuracy on the whole of `split`; stops as `predict` does.

        And what else the objective measures.
        """
        return self.objective.validate(split.labels, self._answers(split, is_stopped))

    def _compute(self, pixels: tf.Tensor) -> tf.Tensor:
        """Return the answers to all rows, which all devices of this process share."""
        if self._replicas == 1 and not isinstance(self.strategy, tf.distribute.TPUStrategy):
            logits = self._logits(pixels)
        else:
            done = self.strategy.run(self._share_of_replica, args=(pixels,))
            logits = tf.concat(self.strategy.experimental_local_results(done), axis=0)
        # float64, so that rows sum to one and a sure answer is not rounded to 0 or 1.
        return self.objective.probabilities(tf.cast(logits, tf.float64))

    def _share_of_replica(self, pixels: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group % self._replicas
        shares = tf.reshape(pixels, tf.concat([[self._replicas, -1], tf.shape(pixels)[1:]], axis=0))
        return self._logits(tf.ensure_shape(tf.gather(shares, replica), pixels.shape))

    def _logits(self, pixels: tf.Tensor) -> tf.Tensor:
        return self.model(tf.cast(pixels, tf.float32), training=False)


def predict_splits(evaluator: Evaluator, dataset: Dataset) -> dict[str, AnyPredictions]:
    """Return the predictions for every split of `dataset`, by split name.

    Where images have several labels, the split `thresholds` chooses the thresholds of all; the training
    images do where there is none.
    """
    found = {name: evaluator.predict(split, dataset.class_names) for name, split in dataset.splits.items()}
    chooser = found.get(THRESHOLDS, found["train"])
    if not isinstance(chooser, MultiLabelPredictions):
        return found
    thresholds = choose_thresholds(chooser.truth, chooser.probabilities)
    return {
        name: each.with_thresholds(thresholds) if isinstance(each, MultiLabelPredictions) else each
        for name, each in found.items()
    }


def thresholds_of(predictions: Mapping[str, AnyPredictions]) -> list[float]:
    """Return the threshold of each label in the predictions of a model; none where images have one label."""
    first = next(iter(predictions.values()))
    if not isinstance(first, MultiLabelPredictions) or first.thresholds is None:
        return []
    return [float(each) for each in first.thresholds]
