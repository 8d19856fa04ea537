"""Recognition of images that are unlike the training images: choice, fit and calibration of the detector.

The method is chosen by the AUROC that it reaches on synthetic images and on classes that are left out. Both
consist of training images alone, so that nothing is chosen on the images that are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.export.novelty import FeatureIndex, Method, NoveltyDetector, score
from trainer.training.probe import one_scipy_thread

Features = NDArray[np.float32]
Floats = NDArray[np.float64]
Labels = NDArray[np.integer[Any]]
Groups = NDArray[np.int64] | None

METHODS: tuple[Method, ...] = ("mahalanobis", "neighbour")
MOST_BYTES = 5_000_000
"""Maximum size of a detector in the exported model."""
MOST_POINTS = 3_000
"""Maximum number of training images of a detector."""
WIDEST = 1 << 16
"""Maximum number of features."""
_RANK = 128
_MOST_PROJECTION_BYTES = 1 << 20
_IMAGES_PER_DIRECTION = 4
_NEIGHBOUR = 10
_FEWEST_POINTS = 20
_FOLDS = 10
_DRAWS = 5
_LEFT_OUT_SHARE = 3
_BATCH = 1_000


@dataclass(frozen=True)
class Chosen:
    """The chosen method and the figures that decided."""

    method: Method
    auroc: dict[str, dict[str, float]]
    """By method, then by kind of synthetic image, and `left_out` for the classes that were left out."""


def choose_method(
    features: Features, labels: Labels, unknown: Mapping[str, Features], seed: int, groups: Groups = None
) -> Chosen:
    """Return the method with the highest mean of the AUROC on synthetic images and on left-out classes.

    features: [images, width] of training images; labels: [images] or [images, labels]. unknown: the features
    of synthetic images by kind. groups: see `cross_fitted_scores`.
    """
    classes = single_labels(labels)
    figures: dict[str, dict[str, float]] = {}
    values = []
    for method in METHODS:
        fitted = fit_index(method, features, classes)
        known = cross_fitted_scores(method, features, classes, groups, folds=2)
        auroc = {
            kind: compute_auroc(known, compute_scores(*fitted, images)) for kind, images in unknown.items()
        }
        value = [float(np.mean(list(auroc.values())))] if auroc else []
        if left_out := _score_left_out(method, features, classes, seed, groups):
            auroc["left_out"] = float(np.mean(left_out))
            value.append(auroc["left_out"])
        figures[method] = auroc
        values.append(float(np.mean(value)) if value else 0.0)
    return Chosen(METHODS[int(np.argmax(values))], figures)


def single_labels(labels: Labels) -> NDArray[np.int64]:
    """Return the class of each image, int64 [images]; with any number of labels all images are one class."""
    return np.zeros(len(labels), np.int64) if labels.ndim == 2 else labels.astype(np.int64)


def _score_left_out(
    method: Method, features: Features, classes: NDArray[np.int64], seed: int, groups: Groups
) -> list[float]:
    """Return the AUROC of several draws of classes that are left out, against new images of the others."""
    present = np.unique(classes)
    if len(present) < 2:
        return []
    rng, values = np.random.default_rng(seed), []
    for draw in range(min(_DRAWS, len(present))):
        count = max(1, len(present) // _LEFT_OUT_SHARE)
        left_out = np.isin(classes, rng.permutation(present)[:count] if count > 1 else present[draw])
        units = _number_units(len(classes), groups)
        is_fitted = ~left_out & (rng.permutation(int(units.max()) + 1)[units] % 2 == 0)
        is_known = ~left_out & ~is_fitted
        if is_fitted.sum() < 2 or not is_known.any():
            continue
        fitted = fit_index(method, features[is_fitted], classes[is_fitted])
        scores = compute_scores(*fitted, features)
        values.append(compute_auroc(scores[is_known], scores[left_out]))
    return values


def compute_auroc(known: Floats, unknown: Floats) -> float:
    """Return the share of pairs in which the unknown image has the higher score; a tie is half a pair."""
    from scipy.stats import rankdata  # slow import, not always needed

    ranks = rankdata(np.concatenate([known, unknown]))[len(known) :].sum()
    pairs = len(known) * len(unknown)
    return float((ranks - len(unknown) * (len(unknown) + 1) / 2) / pairs)


def fit_detector(
    method: Method,
    features: Features,
    labels: Labels,
    names: Sequence[str],
    level: float,
    calibration: Floats | None = None,
    groups: Groups = None,
) -> NoveltyDetector:
    """Return the detector that is fitted to training images.

    features: [images, width], at most MOST_POINTS images; labels as in `choose_method`; names: [images].
    calibration: the scores of other images, [images]. Without it, the training images are calibrated against
    each other by cross-fitting, which requires features that were not trained on them. groups: see
    `cross_fitted_scores`.
    """
    classes = single_labels(labels)
    training, _ = fit_index("neighbour", features, classes)
    index, neighbour = fit_index(method, features, classes) if method != "neighbour" else (training, 0)
    neighbour = neighbour or _count_neighbours(len(features))
    if calibration is None:
        calibration = cross_fitted_scores(method, features, classes, groups)
    scores = np.sort(calibration).astype(np.float32)
    return NoveltyDetector(method, index, neighbour, scores, level, training, tuple(names))


def count_points(width: int, names: Sequence[str], classes: int) -> int:
    """Return how many training images, in this order, fit into a detector of MOST_BYTES; 0 if too few do.

    width: number of features. names: names of the images, which the detector stores. classes: their number.
    """
    if width > WIDEST:
        return 0
    rank = find_rank(width, len(names))
    row_bytes = 4 * (rank + 1)
    both_bases = 2 * 4 * (width * (rank + 1) + rank)
    left = MOST_BYTES - both_bases - classes * row_bytes - 4 * MOST_POINTS
    sizes = np.cumsum([row_bytes + len(name.encode()) for name in names])
    count = int(np.searchsorted(sizes, left, side="right"))
    return count if count >= min(_FEWEST_POINTS, len(names)) else 0


def find_rank(width: int, images: int) -> int:
    """Return the number of principal components for features of `width` of so many images."""
    most = _MOST_PROJECTION_BYTES // (4 * width)
    return max(1, min(_RANK, width, images // _IMAGES_PER_DIRECTION, most))


def cross_fitted_scores(
    method: Method,
    features: Features,
    classes: NDArray[np.int64],
    groups: Groups = None,
    folds: int = _FOLDS,
) -> Floats:
    """Return the score of each image by a detector that is fitted to the other folds, float64 [images].

    groups: number of the group of each image, [images]; all images of a group are in one fold.
    """
    units = _number_units(len(features), groups)
    fold = units % min(folds, int(units.max(initial=0)) + 1)
    scores = np.zeros(len(features))
    for number in np.unique(fold):
        is_tested = fold == number
        if is_tested.all():
            return scores
        fitted = fit_index(method, features[~is_tested], classes[~is_tested])
        scores[is_tested] = compute_scores(*fitted, features[is_tested])
    return scores


def _number_units(images: int, groups: Groups) -> NDArray[np.int64]:
    """Return the number of the group of each image, from 0; its own number without groups."""
    if groups is None:
        return np.arange(images)
    return np.asarray(np.unique(groups, return_inverse=True)[1], np.int64)


def compute_scores(index: FeatureIndex, neighbour: int, features: Features) -> Floats:
    """Return the scores of features, [images, width], as float64 [images]."""
    parts = [
        np.asarray(score(index, features[start : start + _BATCH], neighbour))
        for start in range(0, len(features), _BATCH)
    ]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def fit_index(method: Method, features: Features, classes: NDArray[np.int64]) -> tuple[FeatureIndex, int]:
    """Return the index of `method`, and the number of the neighbour whose distance is the score.

    neighbour: the images in their leading principal components (Sun et al., "Out-of-distribution detection
    with deep nearest neighbors", ICML 2022). mahalanobis: the class means, in units of the covariance within
    the classes (Lee et al., NeurIPS 2018), which is that of probabilistic principal component analysis
    (Tipping and Bishop 1999): the directions beyond the leading ones share one variance.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    rows = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
    center = rows.mean(axis=0)
    rows -= center
    if method == "neighbour":
        axes, _, _ = _find_axes(rows)
        return _build_index(center, axes, np.ones(axes.shape[1]), 1.0, rows), _count_neighbours(len(rows))
    present, numbers = np.unique(classes, return_inverse=True)
    means = np.stack([rows[numbers == number].mean(axis=0) for number in range(len(present))])
    axes, variances, rest = _find_axes(rows - means[numbers])
    return _build_index(center, axes, variances, rest, means), 1


def _count_neighbours(images: int) -> int:
    return max(1, min(_NEIGHBOUR, images // 2))


def _find_axes(rows: Floats) -> tuple[Floats, Floats, float]:
    """Return the principal axes [width, rank], their variances [rank], and the mean variance of the others.

    rows: [images, width], centred.
    """
    from sklearn.utils.extmath import randomized_svd  # slow import, needed only here

    count, width = rows.shape
    rank = find_rank(width, count)
    with one_scipy_thread():
        _, lengths, axes = randomized_svd(rows, rank, n_iter=4, random_state=0)
    variances = lengths**2 / count
    total = float(np.sum(rows**2, dtype=np.float64)) / count
    rest = max(total - float(variances.sum()), 0.0) / max(width - rank, 1)
    # Features that are constant, such as those of dead units, would give a variance of 0.
    least = max(total / width, np.finfo(np.float32).eps) * 1e-3
    return axes.T, np.maximum(variances, least), max(rest, least)


def _build_index(center: Floats, axes: Floats, variances: Floats, rest: float, rows: Floats) -> FeatureIndex:
    scales = 1.0 / np.sqrt(variances)
    within = rows @ axes
    residuals = np.maximum(np.sum(rows**2, axis=1) - np.sum(within**2, axis=1), 0.0) / rest
    return FeatureIndex(
        center.astype(np.float32),
        (axes * scales).astype(np.float32),
        (within * scales).astype(np.float32),
        (np.sum((within * scales) ** 2, axis=1) + residuals).astype(np.float32),
        scales.astype(np.float32),
        1.0 / rest,
    )
