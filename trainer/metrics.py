"""Predictions to metrics.

In: `Predictions`, one row an image. Out: flat numbers, a confusion matrix, calibration
bins, and `predictions.csv`, from which every one of them can be computed again to the last
digit. Nothing here knows of a model or of TensorFlow.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from trainer.exits import DataError, UsageError
from trainer.printable import spreadsheet_cell, text_of_cell
from trainer.storage.local import write_text

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_Z = NormalDist().inv_cdf(0.975)
_COLUMNS = ("split", "path", "label", "predicted")
_CLASS_COLUMN = "probability:"
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


def compute_metrics(predictions: Predictions) -> dict[str, float]:
    """Return all metrics by flat name, all in 0..1 but the counts, `log_loss` and `brier`.

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
    correct = int(np.sum(predictions.predicted == predictions.labels))
    low, high = wilson_interval(correct, count)
    return {
        "accuracy": correct / count,
        "accuracy_low": low,
        "accuracy_high": high,
        "count": count,
        "correct": correct,
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


def write_predictions(path: Path, predictions: Sequence[Predictions]) -> None:
    """Write one CSV row an image, all splits below each other; they have the same classes.

    Columns: split, path, label, predicted, and `probability:<class>` for each class, with
    every digit that a float has; a text that a spreadsheet would take for a formula follows an apostrophe,
    which `read_predictions` takes away again. Raises TemporaryError, UsageError.
    """
    class_names = predictions[0].class_names if predictions else ()
    text = io.StringIO(newline="")
    # Every text is quoted: only so does a lone carriage return survive in Python 3.10.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([*_COLUMNS, *(_CLASS_COLUMN + storable(name) for name in class_names)])
    for each in predictions:
        writer.writerows(_rows(each))
    write_text(path, text.getvalue())


def read_predictions(path: Path) -> list[Predictions]:
    """Return what `write_predictions` wrote to `path`. Raises UsageError if it didn't."""
    try:
        return parse_predictions(path.read_bytes().decode(), str(path))
    except OSError as error:
        raise UsageError(f"The predictions can't be read: {error.strerror}. Received: {path}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"The predictions are not UTF-8: {error}. Received: {path}") from None


def parse_predictions(text: str, where: str) -> list[Predictions]:
    """Return what the `text` of a predictions.csv says; `where` is its name in errors. Raises UsageError."""
    try:
        rows = [
            [*map(text_of_cell, row[: len(_COLUMNS)]), *row[len(_COLUMNS) :]]
            for row in csv.reader(io.StringIO(text, newline=""))
        ]
        class_names = _read_header(rows[0] if rows else [])
        _require_whole(rows)
        splits = dict.fromkeys(row[0] for row in rows[1:])
        return [
            _read_split(split, [row for row in rows[1:] if row[0] == split], class_names) for split in splits
        ]
    except (ValueError, csv.Error) as error:
        raise UsageError(
            f"This is not a predictions.csv of this program: {error}. Received: {where}"
        ) from None


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


def _rows(predictions: Predictions) -> Iterator[list[str | float]]:
    class_names = [storable(name) for name in predictions.class_names]
    for name, label, predicted, probabilities in zip(
        predictions.names,
        predictions.labels.tolist(),
        predictions.predicted.tolist(),
        predictions.probabilities.astype(np.float64).tolist(),
        strict=True,
    ):
        # The csv module writes floats with repr: as many digits as it takes to read the same one back.
        texts = [predictions.split, storable(name), class_names[label], class_names[predicted]]
        yield [*map(spreadsheet_cell, texts), *probabilities]


def storable(text: str) -> str:
    """Return `text` with what UTF-8 can't hold, such as odd bytes of a file's name, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_header(header: Sequence[str]) -> tuple[str, ...]:
    texts, classes = header[: len(_COLUMNS)], header[len(_COLUMNS) :]
    if tuple(texts) != _COLUMNS or not all(name.startswith(_CLASS_COLUMN) for name in classes):
        raise ValueError(f"its columns should be {', '.join(_COLUMNS)}, {_CLASS_COLUMN}<class>, ...")
    return tuple(name[len(_CLASS_COLUMN) :] for name in classes)


def _require_whole(rows: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} cells, and there are {len(rows[0])} columns")


def _read_split(split: str, rows: Sequence[Sequence[str]], class_names: tuple[str, ...]) -> Predictions:
    index = {name: number for number, name in enumerate(class_names)}
    unknown = [row[2] for row in rows if row[2] not in index]
    if unknown:
        raise ValueError(f"the label {unknown[0]!r} has no column")
    return Predictions(
        split=split,
        names=tuple(row[1] for row in rows),
        labels=np.array([index[row[2]] for row in rows], dtype=np.int32),
        probabilities=np.array([[float(cell) for cell in row[len(_COLUMNS) :]] for row in rows]),
        class_names=class_names,
    )
