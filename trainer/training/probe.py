"""Logistic regression on cached features: the head of a pretrained backbone that is frozen.

The strength of the L2 penalty is selected by the log loss of a stratified cross-validation on the training
images alone. Features are centred and scaled before the fit, and the inverse transformation is folded into
the weights of the head. With multiple labels per image, each label has a binary classifier, and the
probabilities of the resulting `Probe` are sigmoids of its logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import DataError, StoppedError, UsageError

Floats = NDArray[np.float64]
Labels = NDArray[np.integer]
Groups = NDArray[np.int64] | None

_PENALTIES = tuple(10.0**power for power in np.arange(-5.0, 2.01, 0.5))
"""Values of C, the inverse strength of the penalty, from strong to weak."""
_FIRST_INDEX = 5
"""Index of the penalty with which the search begins."""
_MAX_ITERATIONS = 1000
MAX_WORK = 2e11
"""Upper limit of images x width x classes x folds; larger fits take hours."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted head."""

    kernel: Floats
    """[width, classes]."""
    bias: Floats
    """[classes]."""
    penalty: float
    """C of scikit-learn's LogisticRegression, on scaled features."""
    held_out: Floats | None
    """Out-of-fold probabilities of the training images, [images, classes].

    None if no class has two images, so that there are no folds.
    """
    is_tested: NDArray[np.bool_] | None = None
    """Whether an image is in a fold, [images]; the probabilities of others are no predictions."""


def fit_probe(
    features: NDArray[np.floating[Any]],
    labels: Labels,
    weights: NDArray[np.floating[Any]],
    folds: int,
    is_stopped: Callable[[], bool] = lambda: False,
    groups: Groups = None,
) -> Probe:
    """Return the head that is fitted to `features` [images, width] and `labels` [images].

    weights: weight of each class in the loss, [classes]. folds: number of folds of the cross-validation that
    selects the penalty. groups: see `assign_folds`. Raises UsageError if the fit exceeds MAX_WORK, DataError
    for features that are not finite, and StoppedError once `is_stopped` returns True between two fits.
    """
    if features.size * len(weights) * folds > MAX_WORK:
        raise UsageError(
            "Logistic regression would take hours for this many images and classes.",
            "Train the head in steps with --set train.finetune.probe=steps.",
            received=f"{len(features)} images of {len(weights)} classes",
        )
    if not np.isfinite(features).all():
        raise DataError(
            "The features of the backbone are not finite numbers.",
            "Choose other weights, or another backbone.",
            received=f"features of {len(features)} images",
        )
    mean = features.mean(axis=0, dtype=np.float64)
    # One scale for all features: a few images do not suffice to estimate one per feature.
    scale = float(np.sqrt(features.var(axis=0, dtype=np.float64).mean())) or 1.0
    scaled = (features - mean) / scale
    sample_weights = np.asarray(weights, np.float64)[labels]
    with one_scipy_thread():
        fold = assign_folds(labels, folds, groups)
        penalty, held_out = _choose_penalty(scaled, labels, sample_weights, len(weights), fold, is_stopped)
        kernel, bias = _fit(scaled, labels, sample_weights, len(weights), penalty)
    kernel = kernel / scale
    return Probe(kernel, bias - mean @ kernel, penalty, held_out, fold >= 0)


def one_scipy_thread() -> AbstractContextManager[object]:
    """Limit SciPy's own BLAS library to one thread.

    The optimizer uses it for vectors only. Its idle threads spin, and the matrix products of NumPy, which
    has a library of its own, then take four times as long on two cores.
    """
    import scipy.optimize  # noqa: F401  # loads the library, which the controller then finds
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController()
    libraries = [library["filepath"] for library in controller.info() if "scipy.libs" in library["filepath"]]
    selected: AbstractContextManager[object] = controller.select(filepath=libraries).limit(limits=1)
    return selected


def _choose_penalty(
    features: Floats,
    labels: Labels,
    sample_weights: Floats,
    classes: int,
    fold: NDArray[np.int64],
    is_stopped: Callable[[], bool],
) -> tuple[float, Floats | None]:
    """Return the penalty with the lowest cross-validated log loss, and its out-of-fold probabilities."""
    if not (is_tested := fold >= 0).any():
        return _PENALTIES[len(_PENALTIES) // 2], None

    def judge(index: int) -> tuple[float, Floats]:
        # The only image of a class is in no fold, and counts as misclassified.
        probabilities = np.where(np.arange(classes) == labels[:, None], 0.0, 1.0 / max(1, classes - 1))
        for number in range(fold.max() + 1):
            if is_stopped():
                raise StoppedError("Stopped on request while the head was fitted.")
            test = fold == number
            train = (features[~test], labels[~test], sample_weights[~test])
            kernel, bias = _fit(*train, classes, _PENALTIES[index])
            probabilities[test] = _softmax(features[test] @ kernel + bias)
        return _log_loss(
            probabilities[is_tested], labels[is_tested], sample_weights[is_tested]
        ), probabilities

    best = _search(judge)
    return _PENALTIES[best[0]], best[1]


def _search(judge: Callable[[int], tuple[float, Floats]]) -> tuple[int, Floats]:
    """Return the index of the penalty with the lowest loss, and its probabilities.

    In practice the loss is convex in the penalty, so the search descends from the usual minimum.
    """
    index, (loss, probabilities) = _FIRST_INDEX, judge(_FIRST_INDEX)
    for step in (-1, 1):
        has_moved = False
        while 0 <= index + step < len(_PENALTIES) and (result := judge(index + step))[0] < loss:
            index, (loss, probabilities), has_moved = index + step, result, True
        if has_moved:
            break
    return index, probabilities


def assign_folds(labels: Labels, folds: int, groups: Groups = None) -> NDArray[np.int64]:
    """Return the fold of each image, from 0, assigned in turn to the images of each class in their order.

    The only image of a class has fold -1. A class with fewer images than folds is missing in some folds.
    groups: number of the group of each image, [images]; all images of a group then have one fold.
    """
    if groups is not None:
        return _assign_grouped_folds(labels, folds, groups)
    fold = np.full(len(labels), -1, np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            fold[members] = np.arange(len(members)) % folds
    return fold


def _assign_grouped_folds(labels: Labels, folds: int, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold  # slow import, needed only here

    fold = np.full(len(labels), -1, np.int64)
    count = min(folds, len(np.unique(groups)), int(np.bincount(labels).max(initial=0)))
    if count < 2:
        return fold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with fewer groups than folds
        parts = StratifiedGroupKFold(count).split(labels, labels, groups)
        for number, (_, test) in enumerate(parts):
            fold[test] = number
    for label in np.unique(labels):
        # A class that is in one fold alone would be missing in training.
        if len(np.unique(fold[labels == label])) == 1:
            fold[np.isin(groups, groups[labels == label])] = -1
    return fold


def _fit(
    features: Floats, labels: Labels, sample_weights: Floats, classes: int, penalty: float
) -> tuple[Floats, Floats]:
    """Return kernel [width, classes] and bias [classes]."""
    from sklearn.linear_model import LogisticRegression  # slow import, needed only here

    model = LogisticRegression(C=penalty, max_iter=_MAX_ITERATIONS, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence warnings: the cross-validation judges the result
        model.fit(features, labels, sample_weights)
    kernel, bias = np.asarray(model.coef_.T), np.asarray(model.intercept_)
    if classes == 2:
        # scikit-learn fits one column, for the second class; half of it with either sign is the symmetric
        # solution.
        return np.concatenate([-kernel / 2, kernel / 2], axis=1), np.concatenate([-bias / 2, bias / 2])
    return kernel, bias


def _softmax(logits: Floats) -> Floats:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def _log_loss(probabilities: Floats, labels: Labels, sample_weights: Floats) -> float:
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(np.average(-np.log(np.maximum(of_label, np.finfo(np.float64).tiny)), weights=sample_weights))


def evaluate_logits(logits: Floats, labels: Labels) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the cross-entropy of each image, and whether its highest logit is right."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return losses, logits.argmax(axis=1) == labels


def compute_accuracy(probabilities: Floats, labels: Sequence[int] | Labels) -> float:
    """Return the share of the images whose most probable class is right.

    With multi-label `labels`, 0 or 1 [images, classes], an image is right if the probabilities of all its
    labels are on the right side of 1/2.
    """
    if np.ndim(labels) == 2:
        return float(np.mean(((probabilities >= 0.5) == (np.asarray(labels) > 0)).all(axis=1)))
    return float(np.mean(np.argmax(probabilities, axis=1) == np.asarray(labels)))


_CERTAIN_LOGIT = 10.0
"""Absolute logit of a label that all training images have, or none."""


def fit_label_probe(
    features: NDArray[np.floating[Any]],
    labels: Labels,
    weights: NDArray[np.floating[Any]],
    folds: int,
    is_stopped: Callable[[], bool] = lambda: False,
    groups: Groups = None,
) -> Probe:
    """Return the head that is fitted to `features` [images, width] and `labels` [images, labels].

    weights: [labels], weight of the images that have a label relative to those that don't. Each label selects
    its own penalty; the penalty of the result is their geometric mean. Raises what `fit_probe` raises.
    """
    fits = [
        _fit_label(features, labels[:, label], float(weight), folds, is_stopped, groups)
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
    groups: Groups,
) -> Probe:
    if len(np.unique(has_label)) == 2:
        return fit_probe(features, has_label, np.array([1.0, weight]), folds, is_stopped, groups)
    logit = _CERTAIN_LOGIT if has_label.any() else -_CERTAIN_LOGIT
    return Probe(np.zeros((features.shape[1], 2)), np.array([0.0, logit]), 1.0, None)


def evaluate_label_logits(logits: Floats, labels: Labels) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the mean binary cross-entropy of each image, and whether all its labels are right at 1/2."""
    truth = labels > 0
    losses = np.logaddexp(0.0, np.where(truth, -logits, logits)).mean(axis=1)
    return losses, ((logits >= 0) == truth).all(axis=1)
