"""Suspected label errors and images far from their class, by features of a pretrained backbone.

Images that are predicted as another class are ranked by the probability of their label. Probabilities are
out of fold, or those of a model of the training images for held-out images. A label is probably wrong if the
other class has a probability as high as the images of that class have on average. This is the rule of
confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset
Labels"). The package cleanlab computes the same; it would bring pandas for these few lines.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.audit.odd import robust_scores
from trainer.training.probe import MAX_WORK, assign_folds, one_scipy_thread

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]

_PENALTY, _STRONGEST = 2.0, 1e-4
"""C of the logistic regression on scaled features is _PENALTY divided by the number of images, and not less
than _STRONGEST. It is small, so that the model does not adapt to single wrong labels."""
_FOLDS = 5
_FEWEST_IMAGES = 20
_FAR_SCORE = 3.5
"""The usual minimum of an outlier; on 3,000 cats and dogs it names a logo, a star and ten others."""
_NEIGHBOURS = 3
_BLOCK = 1024
_MAX_FAR_IMAGES = 20_000


class Suspect(NamedTuple):
    """An image whose label may be wrong."""

    row: int
    suggested: int
    """The class with the highest probability."""
    label_probability: float
    """Probability of the label of the image."""
    suggested_probability: float
    is_probable: bool
    """Whether the label is probably wrong; otherwise the image may just be difficult."""


class FarImage(NamedTuple):
    """An image that is unlike every other image of its class."""

    row: int
    distance: float
    """Cosine distance to the nearest images of the class, in 0..2."""
    score: float
    """Modified z-score of this distance in the class."""


def find_label_errors(
    features: NDArray[np.floating[Any]],
    labels: Ints,
    is_train: NDArray[np.bool_],
    groups: NDArray[np.int64] | None = None,
) -> list[Suspect] | None:
    """Return the suspected label errors, the least probable labels first.

    features: [images, width]. labels: [images]. is_train: images that models are fitted to; the others are
    predicted by a model of all of these. groups: see `assign_folds`. Returns None if there are too few images
    or classes to cross-validate, or so many that the fit would take hours.
    """
    classes = int(labels.max(initial=-1)) + 1
    train = np.flatnonzero(is_train)
    if (
        len(np.unique(labels[train])) < 2
        or len(train) < _FEWEST_IMAGES
        or features.size * classes * _FOLDS > MAX_WORK
    ):
        return None
    with one_scipy_thread():
        probabilities = _predict_all(features, labels, train, classes, groups)
    return _rank(probabilities, labels)


def _predict_all(
    features: NDArray[np.floating[Any]],
    labels: Ints,
    train: Ints,
    classes: int,
    groups: NDArray[np.int64] | None,
) -> Floats:
    """Return the probabilities of all images, float64 [images, classes]; NaN where there is no prediction."""
    mean = features[train].mean(axis=0, dtype=np.float64)
    scale = float(np.sqrt(features[train].var(axis=0, dtype=np.float64).mean())) or 1.0
    scaled = (features - mean) / scale
    fold = assign_folds(labels[train], _FOLDS, None if groups is None else groups[train])
    probabilities = np.full((len(labels), classes), np.nan)
    for number in range(int(fold.max(initial=-1)) + 1):
        predict = _fit(scaled[train[fold != number]], labels[train[fold != number]], classes)
        rows = train[fold == number]
        probabilities[rows] = predict(scaled[rows])
    others = np.setdiff1d(np.arange(len(labels)), train)
    if len(others):
        probabilities[others] = _fit(scaled[train], labels[train], classes)(scaled[others])
    return probabilities


def _fit(features: Floats, labels: Ints, classes: int) -> Callable[[Floats], Floats]:
    """Return a function from features to probabilities [images, classes]; 0 for a class without images."""
    from sklearn.linear_model import LogisticRegression  # slow import, needed only here

    penalty = max(_STRONGEST, _PENALTY / len(features))
    model = LogisticRegression(C=penalty, max_iter=300, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence: the ranking does not need more
        model.fit(features, labels)

    def predict(rows: Floats) -> Floats:
        probabilities = np.zeros((len(rows), classes))
        probabilities[:, model.classes_] = model.predict_proba(rows)
        return probabilities

    return predict


def _rank(probabilities: Floats, labels: Ints) -> list[Suspect]:
    rows = np.flatnonzero(np.isfinite(probabilities).all(axis=1))
    known, own = probabilities[rows], labels[rows]
    of_label = known[np.arange(len(rows)), own]
    sums = np.bincount(own, weights=of_label, minlength=known.shape[1])
    thresholds = sums / np.maximum(np.bincount(own, minlength=known.shape[1]), 1)
    suggested = known.argmax(axis=1)
    best = known.max(axis=1)
    is_probable = best >= thresholds[suggested]
    suspects = [
        Suspect(
            int(rows[index]), int(suggested[index]), float(of_label[index]), float(best[index]),
            bool(is_probable[index]),
        )
        for index in np.flatnonzero(suggested != own)
    ]  # fmt: skip
    return sorted(suspects, key=lambda suspect: suspect.label_probability)


def find_far_images(features: NDArray[np.floating[Any]], labels: Ints) -> list[FarImage]:
    """Return the images that are far from every other of their class, the farthest first.

    The distance of an image is the mean cosine distance to its three nearest neighbours in the class, as
    compared with those of the other images of the class. Large data are sampled.
    """
    images: list[FarImage] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[:: max(1, -(-len(rows) // _MAX_FAR_IMAGES))]
        if len(rows) < _FEWEST_IMAGES:
            continue
        distances = _neighbour_distances(np.asarray(features[rows], np.float32))
        scores = robust_scores(distances)
        images += [
            FarImage(int(rows[index]), float(distances[index]), float(scores[index]))
            for index in np.flatnonzero(scores >= _FAR_SCORE)
        ]
    return sorted(images, key=lambda image: -image.score)


def _neighbour_distances(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean cosine distance of each row to its nearest other rows, float32 [rows]."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    distances = np.empty(len(unit), np.float32)
    for start in range(0, len(unit), _BLOCK):
        products = unit[start : start + _BLOCK] @ unit.T
        products[np.arange(len(products)), np.arange(start, start + len(products))] = -2.0
        nearest = -np.partition(-products, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS]
        distances[start : start + _BLOCK] = 1 - nearest.mean(axis=1)
    return distances
