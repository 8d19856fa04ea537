"""Whether a model is better than guessing: than always answering the most frequent class.

In: `Predictions`. Out: that class, its share, and yes or no at 95% confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from trainer.metrics import Predictions

_LEVEL = 0.025
"""One-sided, as the limits of a 95% interval are."""
_UNEQUAL, _CHANCE = 1.2, 0.001
"""Classes are unequal if the largest has so many times its share of equal classes, and not by chance."""


def constant_answer(predictions: Predictions) -> tuple[str, float]:
    """Return the name of the most frequent class, the first of equals, and its share in 0..1."""
    counts = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    label = int(np.argmax(counts))
    return predictions.class_names[label], float(counts[label] / counts.sum())


def has_unequal_classes(predictions: Predictions) -> bool:
    """Return whether the most frequent class has clearly more images than its share of equal classes."""
    return are_unequal(np.bincount(predictions.labels, minlength=len(predictions.class_names)).tolist())


def are_unequal(counts: Sequence[int]) -> bool:
    """Return the same of the images of each class."""
    largest, total, classes = max(counts), sum(counts), len(counts)
    by_chance = classes * float(special.bdtrc(largest - 1, total, 1 / classes))
    return largest > _UNEQUAL * total / classes and by_chance < _CHANCE


def beats_guessing(predictions: Predictions) -> bool:
    """Return whether the answers are better than the constant one by more than chance.

    Either more are right than the largest class's share explains (exact binomial test), or, where classes are
    unequal, some class is answered more often for its own images than for others (Fisher's exact test, with
    Bonferroni's correction): such a model may be less accurate than the constant answer, and still know more.
    """
    right = int(np.sum(predictions.predicted == predictions.labels))
    count, share = len(predictions.labels), constant_answer(predictions)[1]
    # The probability of so many right answers, or more.
    if right and float(special.bdtrc(right - 1, count, share)) < _LEVEL:
        return True
    if not has_unequal_classes(predictions):
        return False
    classes = range(len(predictions.class_names))
    return min(_p_of_class(predictions, label) for label in classes) < _LEVEL / len(classes)


def _p_of_class(predictions: Predictions, label: int) -> float:
    """Return Fisher's one-sided p-value of how often a class is answered for its own images."""
    from scipy import stats  # takes as long to load as a comparison of two runs, which needs none of it

    own, answered = predictions.labels == label, predictions.predicted == label
    hits = int(np.sum(own & answered))
    return float(stats.hypergeom.sf(hits - 1, len(own), int(np.sum(own)), int(np.sum(answered))))
