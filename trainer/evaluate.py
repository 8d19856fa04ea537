"""A trained model to predictions.

In: a model that gives logits, and the pixels of a split. Out: `Predictions`, one row an
image, from which every metric is computed. No image is padded, dropped or counted twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.cluster import Cluster
from trainer.data.dataset import Dataset, Split
from trainer.metrics import Predictions
from trainer.train.features import Features
from trainer.train.inference import Inference


class Evaluator:
    """Runs one model on splits; compiled once."""

    def __init__(
        self, model: keras.Model, cluster: Cluster | None = None, features: Features | None = None
    ) -> None:
        """Each process of the `cluster` answers for its share, on all its devices, and gets all answers.

        Without one it is the first device of this process alone. features: of the model's backbone, used as
        long as its weights are those that they were computed with.
        """
        # float64, so that rows sum to one and a sure answer is not rounded to 0 or 1.
        self._inference = Inference(model, cluster, _probabilities, np.float64)
        self._features = features

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
        if self._features is None or not self._features.are_current():
            return self._inference.outputs(split, is_stopped)
        logits = self._features.logits(self._features.of(split, is_stopped))
        answers: np.ndarray[Any, Any] = _probabilities(logits).numpy()
        return answers

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


def _probabilities(logits: tf.Tensor) -> tf.Tensor:
    return tf.nn.softmax(tf.cast(logits, tf.float64))


def predict_splits(evaluator: Evaluator, dataset: Dataset) -> dict[str, Predictions]:
    """Return the predictions for every split of `dataset`, by split name."""
    return {name: evaluator.predict(split, dataset.class_names) for name, split in dataset.splits.items()}
