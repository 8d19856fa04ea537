"""Metrics, confusion matrix and calibration of predictions.

The inputs are predictions with one label or any number of labels per image. The module depends neither on a
model nor on TensorFlow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError
from trainer.evaluate.label_predictions import MultiLabelPredictions, multilabel_predictions
from trainer.ranking import Ranking

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_Z = NormalDist().inv_cdf(0.975)
CALIBRATION_BINS = 15
"""As in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for every image of one split, with one label per image."""

    split: str
    names: tuple[str, ...]
    """One per image, as `Item.name`."""
    labels: npt.NDArray[np.int32]
    """[N], the true classes as indices of `class_names`."""
    probabilities: Floats
    """[N, C], in 0..1; rows sum to 1."""
    class_names: tuple[str, ...]

    @property
    def predicted(self) -> Ints:
        """[N], the most probable classes; the first of a tie."""
        return np.asarray(np.argmax(self.probabilities, axis=1), dtype=np.int64)

    @property
    def confidence(self) -> Floats:
        """[N], the probabilities of the predicted classes."""
        return np.asarray(np.max(self.probabilities, axis=1), dtype=np.float64)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """[N], whether the predicted class is the true one."""
        return np.asarray(self.predicted == self.labels)

    @property
    def confidence_in_truth(self) -> Floats:
        """[N], the probabilities of the true classes."""
        return np.asarray(self.probabilities[np.arange(len(self.labels)), self.labels])

    def truth_text(self, image: int) -> str:
        """Return the name of the class of an image."""
        return self.class_names[int(self.labels[image])]

    def predicted_text(self, image: int) -> str:
        """Return the name of the predicted class of an image."""
        return self.class_names[int(self.predicted[image])]

    def select(self, rows: Ints) -> Predictions:
        """Return the predictions for the images in `rows`."""
        return Predictions(
            self.split,
            tuple(self.names[row] for row in rows),
            self.labels[rows],
            self.probabilities[rows],
            self.class_names,
        )


AnyPredictions = Predictions | MultiLabelPredictions
"""Predictions with one label per image, or with any number of labels."""


def predictions_of(
    split: str,
    names: tuple[str, ...],
    labels: npt.NDArray[np.int32],
    probabilities: Floats,
    class_names: tuple[str, ...],
    thresholds: Floats | None = None,
) -> AnyPredictions:
    """Return predictions for labels, [N], or a label matrix, [N, C], with optional `thresholds`, [C]."""
    if labels.ndim == 2:
        return multilabel_predictions(split, names, labels, probabilities, class_names, thresholds)
    return Predictions(split, names, labels, probabilities, class_names)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Accuracy of predictions by confidence; one entry per bin that has images."""

    confidence: Floats
    """[B], the mean probability of the predictions in the bin."""
    accuracy: Floats
    """[B], the share of them that is correct."""
    count: Ints
    """[B], the number of predictions in the bin."""

    @property
    def error(self) -> float:
        """Expected calibration error in 0..1: mean |accuracy - confidence|, weighted by count."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))


def compute_metrics(predictions: AnyPredictions) -> dict[str, float]:
    """Return all metrics by flat name, all in 0..1 but the counts, `log_loss` and `brier`.

    With any number of labels per image, `accuracy` counts the images whose labels are all correct and
    complete; `label_metrics` describes the others. With one label they are:

    - `accuracy`, with its 95% interval `accuracy_low` and `accuracy_high` (Wilson 1927); the numbers of
      images `count` and `correct`.
    - `log_loss` in nats (as in scikit-learn; probabilities are clipped to 2e-16), and `brier` (Brier 1950):
      with two classes the squared error of the probability of the second one, in 0..1; with more classes the
      sum of squared errors over all classes, in 0..2.
    - `calibration_error` (Guo et al. 2017): see `compute_calibration`.
    - `roc_auc`: with two classes that of the second one; with more the one-vs-rest mean over the classes that
      the split has images of. Absent if the split has one class only.
    - `precision/<class>`, `recall/<class>`, `f1/<class>`, and their means over the classes `macro_precision`,
      `macro_recall`, `macro_f1`. A class that is never predicted has precision 0. A class without images in
      the split has no such value and is excluded from the means.
    - `support/<class>`: number of images of the class.

    Raises DataError if there are no images.
    """
    count = len(predictions.labels)
    if not count:
        raise DataError(
            "A split without images has no metrics.",
            "Check the data source.",
            received=f"0 images in the {predictions.split} split",
        )
    correct = int(np.sum(predictions.right))
    low, high = wilson_interval(correct, count)
    return {
        "accuracy": correct / count,
        "accuracy_low": low,
        "accuracy_high": high,
        "count": count,
        "correct": correct,
        **_other_metrics(predictions),
    }


def _other_metrics(predictions: AnyPredictions) -> dict[str, float]:
    if isinstance(predictions, MultiLabelPredictions):
        return label_metrics(predictions)
    return _class_metrics(predictions)


def _class_metrics(predictions: Predictions) -> dict[str, float]:
    return {
        "log_loss": _log_loss(predictions),
        "brier": _brier(predictions),
        "calibration_error": compute_calibration(predictions).error,
        **_roc_auc(predictions),
        **_per_class(predictions),
    }


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share, both limits in 0..1 (Wilson 1927); `count` is at least 1."""
    # Not from SciPy: importing it takes longer than the rest of a comparison of two runs.
    share, odds = correct / count, _Z**2 / count
    middle = share + odds / 2
    spread = math.sqrt(odds * (share * (1 - share) + odds / 4))
    return max(0.0, (middle - spread) / (1 + odds)), min(1.0, (middle + spread) / (1 + odds))


def confusion_matrix(predictions: Predictions) -> Ints:
    """Return how many images of each class (rows) are predicted as which (columns), int64 [C, C]."""
    import sklearn.metrics  # slow import (1 s), not always needed

    classes = np.arange(len(predictions.class_names))
    matrix = sklearn.metrics.confusion_matrix(predictions.labels, predictions.predicted, labels=classes)
    return np.asarray(matrix, dtype=np.int64)


def compute_calibration(predictions: Predictions) -> Calibration:
    """Return the calibration of the predicted classes, in 15 bins of equal width.

    Bin m has the probabilities in (m/15, (m+1)/15], as in Guo et al. 2017, equation 3.
    """
    confidence = predictions.confidence
    right = predictions.predicted == predictions.labels
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    is_used = counts > 0
    count = counts[is_used]
    return Calibration(
        confidence=np.bincount(bins, weights=confidence, minlength=CALIBRATION_BINS)[is_used] / count,
        accuracy=np.bincount(bins, weights=right, minlength=CALIBRATION_BINS)[is_used] / count,
        count=count,
    )


def _log_loss(predictions: Predictions) -> float:
    import sklearn.metrics  # slow import (1 s), not always needed

    # Rows of float32 probabilities sum to 1 to seven digits only.
    rows = predictions.probabilities / predictions.probabilities.sum(axis=1, keepdims=True)
    classes = np.arange(len(predictions.class_names))
    return float(sklearn.metrics.log_loss(predictions.labels, rows, labels=classes))


def _brier(predictions: Predictions) -> float:
    rows, labels = predictions.probabilities, predictions.labels
    if len(predictions.class_names) == 2:
        return float(np.mean((rows[:, 1] - labels) ** 2))
    # The sum of (p - truth)^2 over the classes, without a one-hot matrix as large as `rows`.
    of_truth = rows[np.arange(len(labels)), labels]
    return float(np.mean(np.einsum("ij,ij->i", rows, rows) - 2 * of_truth + 1))


def _roc_auc(predictions: Predictions) -> dict[str, float]:
    import sklearn.metrics  # slow import (1 s), not always needed

    present = np.unique(predictions.labels)
    if len(present) < 2:
        return {}
    columns = [1] if len(predictions.class_names) == 2 else present
    scores = [
        sklearn.metrics.roc_auc_score(predictions.labels == column, predictions.probabilities[:, column])
        for column in columns
    ]
    return {"roc_auc": float(np.mean(scores))}


def _per_class(predictions: Predictions) -> dict[str, float]:
    import sklearn.metrics  # slow import (1 s), not always needed

    support = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    present = np.flatnonzero(support)
    columns = sklearn.metrics.precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=present, zero_division=0.0
    )
    metrics: dict[str, float] = {}
    for name, values in zip(("precision", "recall", "f1"), columns[:3], strict=True):
        metrics[f"macro_{name}"] = float(np.mean(values))
        for index, value in zip(present, values, strict=True):
            metrics[f"{name}/{predictions.class_names[index]}"] = float(value)
    for class_name, images in zip(predictions.class_names, support, strict=True):
        metrics[f"support/{class_name}"] = int(images)
    return metrics


def label_metrics(predictions: MultiLabelPredictions) -> dict[str, float]:
    """Return the metrics by name, all in 0..1 but `log_loss` and the counts.

    - `mean_average_precision`: mean of `average_precision/<label>` over the labels that the split has images
      of. Average precision is the sum over the ranked images of precision times the step of recall (as in
      scikit-learn), and does not depend on thresholds.
    - `subset_accuracy`: share of images whose labels are all correct and complete; `accuracy` is the same.
      `hamming_loss`: share of wrong decisions, with one decision per image and label.
    - `precision/<label>`, `recall/<label>`, `f1/<label>` at the thresholds of the model, and their means over
      the labels that the split has images of: `macro_precision`, `macro_recall`, `macro_f1`. A label that is
      never predicted has precision 0.
    - `micro_precision`, `micro_recall`, `micro_f1`: those of all decisions together.
    - `support/<label>`: number of images with the label; without any, it has no other metric and no share in
      the means.
    - `log_loss`: mean binary cross-entropy in nats over images and labels (probabilities are clipped to
      2e-16); `brier`: mean squared error of the probabilities.
    - `calibration_error`: distance of mean probability and share of images, over 15 bins (Guo et al. 2017).
    """
    truth, predicted = predictions.truth, predictions.predicted
    support = truth.sum(axis=0)
    hits, counts = (truth & predicted).sum(axis=0), predicted.sum(axis=0)
    precision, recall = _divide(hits, counts), _divide(hits, support)
    f1 = _divide(2 * hits, counts + support)
    averages = Ranking(truth, predictions.probabilities).average_precisions()
    by_label = {"average_precision": averages, "precision": precision, "recall": recall, "f1": f1}
    present = np.flatnonzero(support)
    metrics: dict[str, float] = {
        "subset_accuracy": float(predictions.right.mean()),
        "hamming_loss": float((truth != predicted).mean()),
        **_micro(int(hits.sum()), int(counts.sum()), int(support.sum())),
        **_probability_metrics(predictions),
    }
    for name, values in by_label.items():
        mean = f"mean_{name}" if name == "average_precision" else f"macro_{name}"
        if len(present):
            metrics[mean] = float(values[present].mean())
        metrics |= {f"{name}/{predictions.class_names[label]}": float(values[label]) for label in present}
    return metrics | {
        f"support/{name}": int(images) for name, images in zip(predictions.class_names, support, strict=True)
    }


def _divide(numerators: Ints, denominators: Ints) -> Floats:
    return np.divide(numerators, denominators, out=np.zeros(len(denominators)), where=denominators > 0)


def _micro(hits: int, predicted: int, support: int) -> dict[str, float]:
    return {
        "micro_precision": hits / predicted if predicted else 0.0,
        "micro_recall": hits / support if support else 0.0,
        "micro_f1": 2 * hits / (predicted + support) if predicted + support else 0.0,
    }


def _probability_metrics(predictions: MultiLabelPredictions) -> dict[str, float]:
    scores, truth = predictions.probabilities.ravel(), predictions.truth.ravel()
    of_truth = np.where(truth, scores, 1 - scores)
    bins = np.clip(np.ceil(scores * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    probability_sums = np.bincount(bins, weights=scores, minlength=CALIBRATION_BINS)
    label_counts = np.bincount(bins, weights=truth, minlength=CALIBRATION_BINS)
    return {
        "log_loss": float(-np.mean(np.log(np.maximum(of_truth, np.finfo(np.float64).eps)))),
        "brier": float(np.mean((scores - truth) ** 2)),
        "calibration_error": float(np.abs(probability_sums - label_counts).sum() / len(scores)),
    }
