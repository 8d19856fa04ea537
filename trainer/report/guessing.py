"""Significance tests against guessing, that is, against always predicting the most frequent class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from trainer.evaluate.metrics import Predictions

_LEVEL = 0.025
"""One-sided significance level, as of the limits of a 95% interval."""
_UNEQUAL, _CHANCE = 1.2, 0.001
"""Classes are unequal if the largest has this multiple of an equal share, at this significance level."""


def constant_prediction(predictions: Predictions) -> tuple[str, float]:
    """Return the name of the most frequent class, the first of a tie, and its share in 0..1."""
    counts = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    label = int(np.argmax(counts))
    return predictions.class_names[label], float(counts[label] / counts.sum())


def has_unequal_classes(predictions: Predictions) -> bool:
    """Return whether the most frequent class has clearly more images than an equal share."""
    return are_unequal(np.bincount(predictions.labels, minlength=len(predictions.class_names)).tolist())


def are_unequal(counts: Sequence[int]) -> bool:
    """Return whether the largest of `counts`, the images by class, is clearly more than an equal share."""
    largest, total, classes = max(counts), sum(counts), len(counts)
    by_chance = classes * float(special.bdtrc(largest - 1, total, 1 / classes))
    return largest > _UNEQUAL * total / classes and by_chance < _CHANCE


def beats_guessing(predictions: Predictions) -> bool:
    """Return whether the predictions are significantly better than the constant one, at 95% confidence.

    Either more of them are correct than the share of the largest class explains (exact binomial test), or,
    with unequal classes, some class is predicted more often for its own images than for others (Fisher's
    exact test with Bonferroni correction). Such a model may be less accurate than the constant prediction and
    still be informative.
    """
    right = int(np.sum(predictions.predicted == predictions.labels))
    count, share = len(predictions.labels), constant_prediction(predictions)[1]
    # The probability of at least this many correct predictions.
    if right and float(special.bdtrc(right - 1, count, share)) < _LEVEL:
        return True
    if not has_unequal_classes(predictions):
        return False
    classes = range(len(predictions.class_names))
    return min(_p_of_class(predictions, label) for label in classes) < _LEVEL / len(classes)


def _p_of_class(predictions: Predictions, label: int) -> float:
    """Return Fisher's one-sided p-value of how often a class is predicted for its own images."""
    from scipy import stats  # slow import, not needed to compare two runs

    is_own, is_predicted = predictions.labels == label, predictions.predicted == label
    hits = int(np.sum(is_own & is_predicted))
    return float(stats.hypergeom.sf(hits - 1, len(is_own), int(np.sum(is_own)), int(np.sum(is_predicted))))
