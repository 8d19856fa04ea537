"""Predictions to metrics.

In: `Predictions`, one row an image, or those of any number of labels an image. Out: flat numbers, a confusion
matrix, calibration bins. Nothing here knows of a model or of TensorFlow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from trainer.exits import DataError
from trainer.multilabel.metrics import label_metrics
from trainer.multilabel.predictions import MultiLabelPredictions, multilabel_predictions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_Z = NormalDist().inv_cdf(0.975)
CALIBRATION_BINS = 15
"""As Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, have it."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of every image of one split."""

    split: str
    names: tuple[str, ...]
    """One an image, as `Item.name`."""
    labels: npt.NDArray[np.int32]
    """[N], the true classes as indices of `class_names`."""
    probabilities: Floats
    """[N, C], in 0..1; rows sum to 1."""
    class_names: tuple[str, ...]

    @property
    def predicted(self) -> Ints:
        """[N], the most probable classes; the first of equals."""
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
        """Return the name of an image's class."""
        return self.class_names[int(self.labels[image])]

    def answer_text(self, image: int) -> str:
        """Return the name of the class that is predicted of an image."""
        return self.class_names[int(self.predicted[image])]

    def select(self, rows: Ints) -> Predictions:
        """Return the predictions of the images in `rows`."""
        return Predictions(
            self.split,
            tuple(self.names[row] for row in rows),
            self.labels[rows],
            self.probabilities[rows],
            self.class_names,
        )


AnyPredictions = Predictions | MultiLabelPredictions
"""Of one label an image, or of any number of them."""


def predictions_of(
    split: str,
    names: tuple[str, ...],
    labels: npt.NDArray[np.int32],
    probabilities: Floats,
    class_names: tuple[str, ...],
    thresholds: Floats | None = None,
) -> AnyPredictions:
    """Return the predictions of labels [N], or of a label matrix [N, C], which may have `thresholds`, [C]."""
    if labels.ndim == 2:
        return multilabel_predictions(split, names, labels, probabilities, class_names, thresholds)
    return Predictions(split, names, labels, probabilities, class_names)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often answers of about the same probability are right; one entry a bin that holds an image."""

    confidence: Floats
    """[B], the mean probability of the answers in the bin."""
    accuracy: Floats
    """[B], the share of them that is right."""
    count: Ints
    """[B], how many they are."""

    @property
    def error(self) -> float:
        """The expected calibration error, in 0..1: the mean distance of the two, weighted by count."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))


def compute_metrics(predictions: AnyPredictions) -> dict[str, float]:
    """Return all metrics by flat name, all in 0..1 but the counts, `log_loss` and `brier`.

    With any number of labels an image `accuracy` counts the images whose labels are all right and complete;
    `trainer.multilabel.metrics.label_metrics` has the others. With one label they are:

    - `accuracy`, with `accuracy_low` and `accuracy_high`, its 95% interval (Wilson 1927);
      `count` and `correct` images.
    - `log_loss` in nats (scikit-learn's; probabilities below 2e-16 count as that), and `brier`
      (Brier 1950): with two classes the squared error of the second one's probability, in 0..1;
      with more the sum of squared errors over all classes, in 0..2.
    - `calibration_error` (Guo et al. 2017): see `compute_calibration`.
    - `roc_auc`: with two classes that of the second one; with more the mean of one against the
      rest over the classes that the split has images of. Absent if the split has one class only.
    - `precision/<class>`, `recall/<class>`, `f1/<class>`, and their plain means over the classes
      `macro_precision`, `macro_recall`, `macro_f1`. A class that is never predicted has precision
      0. A class that the split has no image of has no such value, and counts in no mean.
    - `support/<class>`: its images.

    Raises DataError if there are no images.
    """
    count = len(predictions.labels)
    if not count:
        raise DataError(
            f"Nothing can be measured without images; look at where the data come from. "
            f"Received: 0 images in the {predictions.split} split"
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
    """Return the 95% interval of a share, both in 0..1 (Wilson 1927); `count` is at least 1."""
    # SciPy has it, in a part that takes longer to load than all else that compares two runs.
    share, odds = correct / count, _Z**2 / count
    middle = share + odds / 2
    spread = math.sqrt(odds * (share * (1 - share) + odds / 4))
    return max(0.0, (middle - spread) / (1 + odds)), min(1.0, (middle + spread) / (1 + odds))


def confusion_matrix(predictions: Predictions) -> Ints:
    """Return how many images of each class (rows) were taken for which (columns), int64 [C, C]."""
    import sklearn.metrics  # takes a second, and only some need it

    classes = np.arange(len(predictions.class_names))
    matrix = sklearn.metrics.confusion_matrix(predictions.labels, predictions.predicted, labels=classes)
    return np.asarray(matrix, dtype=np.int64)


def compute_calibration(predictions: Predictions) -> Calibration:
    """Return the calibration of the most probable answers, in 15 bins of equal width.

    Bin m holds the probabilities in (m/15, (m+1)/15], as in Guo et al. 2017, equation 3.
    """
    confidence = predictions.confidence
    right = predictions.predicted == predictions.labels
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    used = counts > 0
    count = counts[used]
    return Calibration(
        confidence=np.bincount(bins, weights=confidence, minlength=CALIBRATION_BINS)[used] / count,
        accuracy=np.bincount(bins, weights=right, minlength=CALIBRATION_BINS)[used] / count,
        count=count,
    )


def _log_loss(predictions: Predictions) -> float:
    import sklearn.metrics  # takes a second, and only some need it

    # A model that answers in float32 has rows that sum to 1 to seven digits only.
    rows = predictions.probabilities / predictions.probabilities.sum(axis=1, keepdims=True)
    classes = np.arange(len(predictions.class_names))
    return float(sklearn.metrics.log_loss(predictions.labels, rows, labels=classes))


def _brier(predictions: Predictions) -> float:
    rows, labels = predictions.probabilities, predictions.labels
    if len(predictions.class_names) == 2:
        return float(np.mean((rows[:, 1] - labels) ** 2))
    # The sum of (p - truth)^2 over the classes, without a table of zeros and ones as large as `rows`.
    of_truth = rows[np.arange(len(labels)), labels]
    return float(np.mean(np.einsum("ij,ij->i", rows, rows) - 2 * of_truth + 1))


def _roc_auc(predictions: Predictions) -> dict[str, float]:
    import sklearn.metrics  # takes a second, and only some need it

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
    import sklearn.metrics  # takes a second, and only some need it

    support = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    present = np.flatnonzero(support)
    columns = sklearn.metrics.precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=present, zero_division=0.0
    )
    found: dict[str, float] = {}
    for name, values in zip(("precision", "recall", "f1"), columns[:3], strict=True):
        found[f"macro_{name}"] = float(np.mean(values))
        for index, value in zip(present, values, strict=True):
            found[f"{name}/{predictions.class_names[index]}"] = float(value)
    for class_name, images in zip(predictions.class_names, support, strict=True):
        found[f"support/{class_name}"] = int(images)
    return found
