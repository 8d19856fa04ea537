"""Significance tests for the difference of two models, as p-values and 95% intervals.

Inputs are counts, or the predictions of two models for the same images. Values are shares in 0..1 or
differences, second minus first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from trainer.evaluate.metrics import Predictions, wilson_interval

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
LEVEL = 0.05
"""Significance level of all tests, the usual one in science (Fisher 1925)."""
_Z = float(special.ndtri(1 - LEVEL / 2))
RESAMPLES = 1000
_AT_A_TIME = 4_000_000
"""Maximum number of resampled indices in memory at once."""


@dataclass(frozen=True)
class Test:
    """Difference, second minus first, and its significance."""

    difference: float
    low: float
    high: float
    """Limits of the 95% interval."""
    p_value: float
    """Two-sided probability of at least this difference, if there were none."""

    @property
    def is_chance(self) -> bool:
        """Whether chance alone explains the difference."""
        return self.p_value >= LEVEL


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value for the numbers of images that only one of two models predicts correctly.

    Under the null hypothesis each such image is a coin toss (McNemar 1947, the exact form); 1.0 if there are
    none.
    """
    count = only_first + only_second
    return min(1.0, 2 * float(special.bdtr(min(only_first, only_second), count, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of simultaneous tests, adjusted to one significance level (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    left = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * left))
    return [float(p_value) for p_value in adjusted[np.argsort(order)]]


def paired_accuracies(only_first: int, only_second: int, count: int) -> Test:
    """Return the test of two accuracies on the same `count` images (exact McNemar).

    The interval is the adjusted Wald interval of Agresti and Min (2005), which adds half an image to each of
    the four cells.
    """
    first, second, total = only_first + 0.5, only_second + 0.5, count + 2
    middle = (second - first) / total
    spread = np.sqrt(max(0.0, first + second - (second - first) ** 2 / total)) / total
    low, high = max(-1.0, middle - _Z * spread), min(1.0, middle + _Z * spread)
    return Test((only_second - only_first) / count, low, high, exact_mcnemar(only_first, only_second))


def unpaired_accuracies(first: tuple[int, int], second: tuple[int, int]) -> Test:
    """Return the test of two accuracies, each (correct, total), on images that may differ.

    Fisher's exact test, with the interval of Newcombe (1998, method 10), which combines both Wilson
    intervals.
    """
    from scipy import stats  # slow import, not needed for pairs

    right, counts = (first[0], second[0]), (first[1], second[1])
    table = [[right[0], counts[0] - right[0]], [right[1], counts[1] - right[1]]]
    shares = [right[0] / counts[0], right[1] / counts[1]]
    (low_1, high_1), (low_2, high_2) = wilson_interval(*first), wilson_interval(*second)
    difference = shares[1] - shares[0]
    low = difference - float(np.hypot(shares[1] - low_2, high_1 - shares[0]))
    high = difference + float(np.hypot(high_2 - shares[1], shares[0] - low_1))
    return Test(difference, low, high, float(stats.fisher_exact(table).pvalue))


def unpaired_recalls(first: Sequence[tuple[int, int]], second: Sequence[tuple[int, int]]) -> Test:
    """Return the test of two mean recalls, each from (correct, total) per class, on different images.

    Normal approximation, with one correct and one wrong image added to each class (Agresti and Caffo 2000).
    """
    means, variance = [], 0.0
    for classes in (first, second):
        means.append(float(np.mean([right / count for right, count in classes])))
        shares = [((right + 1) / (count + 2), count + 2) for right, count in classes]
        variance += sum(share * (1 - share) / count for share, count in shares) / len(classes) ** 2
    difference, error = means[1] - means[0], float(np.sqrt(variance))
    p_value = 2 * float(special.ndtr(-abs(difference) / error))
    return Test(difference, max(-1.0, difference - _Z * error), min(1.0, difference + _Z * error), p_value)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, sample standard deviation and half the 95% interval of the mean (Student 1908).

    The last two are NaN for a single value.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    deviation = float(np.std(values, ddof=1))
    quantile = float(special.stdtrit(len(values) - 1, 1 - LEVEL / 2))
    return mean, deviation, quantile * deviation / float(np.sqrt(len(values)))


def bootstrap(first: Predictions, second: Predictions, seed: int = 0) -> dict[str, Test]:
    """Return tests of metrics other than accuracy, for predictions for the same images in the same order.

    Paired bootstrap: the images are resampled with replacement 1,000 times, identically for both models. The
    interval is the percentile interval. The p-value is twice the smaller share on one side of zero (Efron and
    Tibshirani 1993), with the observed difference as one more resample, so that it is never 0 (Davison and
    Hinkley 1997). Keys are names of `compute_metrics`.
    """
    count, classes = len(first.labels), len(first.class_names)
    random = np.random.default_rng(seed)
    measures = [_measure(predictions) for predictions in (first, second)]

    def differences(rows: Rows) -> dict[str, Floats]:
        before, after = (measure(rows) for measure in measures)
        return {name: after[name] - before[name] for name in before}

    step = max(1, _AT_A_TIME // max(count, classes))
    resampled = [
        differences(random.integers(0, count, (min(step, RESAMPLES - start), count)))
        for start in range(0, RESAMPLES, step)
    ]
    return {
        name: test_of(float(whole[0]), np.concatenate([part[name] for part in resampled]))
        for name, whole in differences(np.arange(count)[None]).items()
    }


def _measure(predictions: Predictions) -> Callable[[Rows], dict[str, Floats]]:
    """Return a function from rows of image indices, int64 [R, N], to metrics, each [R]."""
    classes = len(predictions.class_names)
    labels, predicted = predictions.labels.astype(np.int64), predictions.predicted
    probabilities = predictions.probabilities
    right = np.clip(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).eps, None)
    squares = (probabilities - np.eye(classes)[labels]) ** 2
    per_image = {"log_loss": -np.log(right), "brier": squares[:, 1] if classes == 2 else squares.sum(axis=1)}

    def measure(rows: Rows) -> dict[str, Floats]:
        recall, f1 = _macro(labels[rows], predicted[rows], classes)
        means = {name: values[rows].mean(axis=1) for name, values in per_image.items()}
        return {"macro_recall": recall, "macro_f1": f1} | means

    return measure


def _macro(labels: Rows, predicted: Rows, classes: int) -> tuple[Floats, Floats]:
    """Return macro recall and macro F1 of each row of predictions."""
    hits = _counts(np.where(labels == predicted, labels, classes), classes + 1)[:, :classes]
    support, predictions = _counts(labels, classes), _counts(predicted, classes)
    is_present, total = support > 0, support + predictions
    recall = np.divide(hits, support, out=np.zeros(hits.shape), where=is_present)
    f1 = np.divide(2 * hits, total, out=np.zeros(hits.shape), where=total > 0)
    present = is_present.sum(axis=1)
    return recall.sum(axis=1) / present, (f1 * is_present).sum(axis=1) / present


def _counts(values: Rows, kinds: int) -> Rows:
    """Return how often each of 0..kinds-1 occurs in each row, int64 [R, kinds]."""
    many = len(values)
    flat = np.bincount((values + np.arange(many)[:, None] * kinds).ravel(), minlength=many * kinds)
    return flat.reshape(many, kinds)


def test_of(difference: float, resampled: Floats) -> Test:
    """Return the test of a difference by the differences of its resamples; see `bootstrap`."""
    low, high = (float(np.quantile(resampled, level)) for level in (LEVEL / 2, 1 - LEVEL / 2))
    below, above = int(np.sum(resampled <= 0)), int(np.sum(resampled >= 0))
    return Test(difference, low, high, min(1.0, 2 * (min(below, above) + 1) / (len(resampled) + 1)))


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
