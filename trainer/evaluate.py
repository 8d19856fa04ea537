"""A trained model to predictions.

In: a model that gives logits, and the pixels of a split. Out: `Predictions`, one row an
image, from which every metric is computed. No image is padded, dropped or counted twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.cluster import Cluster
from trainer.data.dataset import Dataset, Split
from trainer.data.items import THRESHOLDS
from trainer.metrics import AnyPredictions, predictions_of
from trainer.multilabel.predictions import MultiLabelPredictions
from trainer.multilabel.thresholds import choose_thresholds
from trainer.objective import SINGLE, Objective
from trainer.train.features import Features
from trainer.train.inference import Inference


class Evaluator:
    """Runs one model on splits; compiled once."""

    def __init__(
        self,
        model: keras.Model,
        cluster: Cluster | None = None,
        features: Features | None = None,
        objective: Objective = SINGLE,
    ) -> None:
        """Each process of the `cluster` answers for its share, on all its devices, and gets all answers.

        Without one it is the first device of this process alone. features: of the model's backbone, used as
        long as its weights are those that they were computed with.
        """
        # float64, so that rows sum to one and a sure answer is not rounded to 0 or 1.
        self._probabilities = partial(_probabilities, objective)
        self._inference = Inference(model, cluster, self._probabilities, np.float64)
        self._features, self._objective, self._is_frozen = features, objective, False

    def final(self, is_frozen: bool) -> Evaluator:
        """Return the evaluator of a run's last predictions.

        Whether they come from cached features follows from the spec alone, as both ways differ by rounding:
        they do if the backbone is frozen to the end (`is_frozen`), wherever the run was interrupted.
        """
        last = copy.copy(self)
        last._features, last._is_frozen = (self._features, True) if is_frozen else (None, False)
        return last

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
        if self._features is None or not (self._is_frozen or self._features.are_current()):
            return self._inference.outputs(split, is_stopped)
        logits = self._features.logits(self._features.of(split, is_stopped))
        answers: np.ndarray[Any, Any] = self._probabilities(logits).numpy()
        return answers

    def loss_and_accuracy(
        self, split: Split, is_stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Return the mean cross-entropy and the accuracy on the whole of `split`; stops as `predict` does.

        And what else the objective measures.
        """
        return self._objective.validate(split.labels, self._answers(split, is_stopped))


def _probabilities(objective: Objective, logits: tf.Tensor) -> tf.Tensor:
    return objective.probabilities(tf.cast(logits, tf.float64))


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
