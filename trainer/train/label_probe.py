"""Logistic regression for multiple labels per image: one binary classifier per label.

The probabilities of the resulting `Probe` are sigmoids of its logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.train.probe import Floats, Labels, Probe, fit_probe

_SURE = 10.0
"""Absolute logit of a label that all training images have, or none."""


def fit_label_probe(
    features: NDArray[np.floating[Any]],
    labels: Labels,
    weights: NDArray[np.floating[Any]],
    folds: int,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Probe:
    """Return the head that is fitted to `features` [images, width] and `labels` [images, labels].

    weights: [labels], weight of the images that have a label relative to those that don't. Each label selects
    its own penalty; the penalty of the result is their geometric mean. Raises what `fit_probe` raises.
    """
    fits = [
        _fit_label(features, labels[:, label], float(weight), folds, is_stopped)
        for label, weight in enumerate(weights)
    ]
    held_out = [fit.held_out[:, 1] for fit in fits if fit.held_out is not None]
    return Probe(
        kernel=np.stack([fit.kernel[:, 1] - fit.kernel[:, 0] for fit in fits], axis=1),
        bias=np.array([fit.bias[1] - fit.bias[0] for fit in fits]),
        penalty=float(np.exp(np.mean([np.log(fit.penalty) for fit in fits]))),
        held_out=np.stack(held_out, axis=1) if len(held_out) == len(fits) else None,
    )


def _fit_label(
    features: NDArray[np.floating[Any]],
    has_label: Labels,
    weight: float,
    folds: int,
    is_stopped: Callable[[], bool],
) -> Probe:
    if len(np.unique(has_label)) == 2:
        return fit_probe(features, has_label, np.array([1.0, weight]), folds, is_stopped)
    sure = _SURE if has_label.any() else -_SURE
    return Probe(np.zeros((features.shape[1], 2)), np.array([0.0, sure]), 1.0, None)


def judge_label_logits(logits: Floats, labels: Labels) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the mean binary cross-entropy of each image, and whether all its labels are right at 1/2."""
    truth = labels > 0
    losses = np.logaddexp(0.0, np.where(truth, -logits, logits)).mean(axis=1)
    return losses, ((logits >= 0) == truth).all(axis=1)
