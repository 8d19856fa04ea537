"""Predictions of a trained model for whole splits.

The model returns logits. Predictions have one row of probabilities per image, from which every metric is
computed. No image is padded, dropped or counted twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.data.dataset import Dataset, Split
from trainer.data.items import THRESHOLDS
from trainer.distributed.devices import Cluster
from trainer.evaluate.label_predictions import MultiLabelPredictions, choose_thresholds
from trainer.evaluate.metrics import AnyPredictions, predictions_of
from trainer.training.features import Features
from trainer.training.inference import Inference
from trainer.training.objective import SINGLE, Objective


class Evaluator:
    """Predicts splits with one model; compiled once."""

    def __init__(
        self,
        model: keras.Model,
        cluster: Cluster | None = None,
        features: Features | None = None,
        objective: Objective = SINGLE,
    ) -> None:
        """Set up inference on `cluster`, or on the first device of this process without one.

        Each process of the cluster predicts its share on all its devices, and receives all predictions.
        features: outputs of the model's backbone, used as long as its weights are those that they were
        computed with.
        """
        # float64, so that rows sum to 1 and confident predictions are not rounded to 0 or 1.
        self._probabilities = partial(_probabilities, objective)
        self._inference = Inference(model, cluster, self._probabilities, np.float64)
        self._features, self._objective, self._is_frozen = features, objective, False

    def final(self, is_frozen: bool) -> Evaluator:
        """Return the evaluator for the final predictions of a run.

        Whether it uses cached features depends on the spec alone, because both ways differ by rounding. It
        does if the backbone is frozen to the end (`is_frozen`), wherever the run was interrupted.
        """
        evaluator = copy.copy(self)
        evaluator._features, evaluator._is_frozen = (self._features, True) if is_frozen else (None, False)
        return evaluator

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
            probabilities=self._predict_probabilities(split, is_stopped),
            class_names=class_names,
        )

    def _predict_probabilities(self, split: Split, is_stopped: Callable[[], bool]) -> np.ndarray[Any, Any]:
        """Return the probabilities of all images of `split`, float64 [images, classes]."""
        if self._features is None or not (self._is_frozen or self._features.are_current()):
            return self._inference.outputs(split, is_stopped)
        logits = self._features.logits(self._features.of(split, is_stopped))
        probabilities: np.ndarray[Any, Any] = self._probabilities(logits).numpy()
        return probabilities

    def loss_and_accuracy(
        self, split: Split, is_stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Return the mean cross-entropy, the accuracy and other metrics of the objective on `split`.

        Raises StoppedError as `predict` does.
        """
        return self._objective.validate(split.labels, self._predict_probabilities(split, is_stopped))


def _probabilities(objective: Objective, logits: tf.Tensor) -> tf.Tensor:
    return objective.probabilities(tf.cast(logits, tf.float64))


def predict_splits(evaluator: Evaluator, dataset: Dataset) -> dict[str, AnyPredictions]:
    """Return the predictions for every split of `dataset`, by split name.

    With several labels per image, the thresholds of all splits are chosen on the split `thresholds`, or on
    the training images if there is none.
    """
    predictions = {
        name: evaluator.predict(split, dataset.class_names) for name, split in dataset.splits.items()
    }
    basis = predictions.get(THRESHOLDS, predictions["train"])
    if not isinstance(basis, MultiLabelPredictions):
        return predictions
    thresholds = choose_thresholds(basis.truth, basis.probabilities)
    return {
        name: split.with_thresholds(thresholds) if isinstance(split, MultiLabelPredictions) else split
        for name, split in predictions.items()
    }


def thresholds_of(predictions: Mapping[str, AnyPredictions]) -> list[float]:
    """Return the threshold of each label in the predictions of a model; empty with one label per image."""
    first = next(iter(predictions.values()))
    if not isinstance(first, MultiLabelPredictions) or first.thresholds is None:
        return []
    return [float(threshold) for threshold in first.thresholds]
