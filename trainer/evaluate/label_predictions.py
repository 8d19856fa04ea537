"""Predictions with any number of labels per image, and their rows in predictions.csv."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from trainer.data.split import FEWEST_FOR_THRESHOLD

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

COLUMNS = ("split", "path")
LABEL, PREDICTED, PROBABILITY = "label:", "predicted:", "probability:"
"""Prefixes of label names, in the columns of predictions.csv."""
NO_LABEL = "no label"
DEFAULT_THRESHOLD = 0.5
"""Threshold of a label for which none was chosen."""


@dataclass(frozen=True, eq=False)
class MultiLabelPredictions:
    """Predictions for every image of one split; an image may have any number of labels."""

    split: str
    names: tuple[str, ...]
    """One per image, as `Item.name`."""
    labels: npt.NDArray[np.int32]
    """[N, C], 1 for each label that an image has."""
    probabilities: Floats
    """[N, C], in 0..1, not normalised over the labels: rows do not sum to 1."""
    class_names: tuple[str, ...]
    predicted: Bools
    """[N, C], whether each label is predicted for each image."""
    thresholds: Floats | None = None
    """[C], the probability from which a label is predicted; None if unknown."""

    @cached_property
    def truth(self) -> Bools:
        """[N, C], whether each image has each label."""
        return np.asarray(self.labels, dtype=bool)

    @property
    def right(self) -> Bools:
        """[N], whether exactly the labels of the image are predicted (its mean is the subset accuracy)."""
        return np.asarray((self.predicted == self.truth).all(axis=1))

    @property
    def confidence(self) -> Floats:
        """[N], the probability of exactly the predicted labels, assuming that labels are independent."""
        return self._probability_of(self.predicted)

    @property
    def confidence_in_truth(self) -> Floats:
        """[N], the probability of exactly the true labels, assuming that labels are independent."""
        return self._probability_of(self.truth)

    def _probability_of(self, labels: Bools) -> Floats:
        return np.asarray(np.where(labels, self.probabilities, 1 - self.probabilities).prod(axis=1))

    def truth_text(self, image: int) -> str:
        """Return the labels of an image as text."""
        return self._text(self.truth[image])

    def predicted_text(self, image: int) -> str:
        """Return the predicted labels of an image as text."""
        return self._text(self.predicted[image])

    def _text(self, labels: Bools) -> str:
        return ", ".join(self.class_names[label] for label in np.flatnonzero(labels)) or NO_LABEL

    def select(self, rows: npt.NDArray[np.int64]) -> MultiLabelPredictions:
        """Return the predictions for the images in `rows`."""
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            labels=self.labels[rows],
            probabilities=self.probabilities[rows],
            predicted=self.predicted[rows],
        )

    def with_thresholds(self, thresholds: Floats) -> MultiLabelPredictions:
        """Return the predictions with the labels whose probability reaches `thresholds`, [C]."""
        return replace(self, predicted=self.probabilities >= thresholds, thresholds=thresholds)

    def with_classes(
        self, columns: npt.NDArray[np.int32], class_names: tuple[str, ...]
    ) -> MultiLabelPredictions:
        """Return the predictions with reordered labels; `columns` are the indices of `class_names` here."""
        return replace(
            self,
            labels=self.labels[:, columns],
            probabilities=self.probabilities[:, columns],
            predicted=self.predicted[:, columns],
            thresholds=None if self.thresholds is None else self.thresholds[columns],
            class_names=class_names,
        )


def multilabel_predictions(
    split: str,
    names: tuple[str, ...],
    labels: npt.NDArray[np.int32],
    probabilities: Floats,
    class_names: tuple[str, ...],
    thresholds: Floats | None = None,
) -> MultiLabelPredictions:
    """Return predictions with the labels that reach `thresholds`, [C], or 0.5 without thresholds."""
    used = np.full(len(class_names), DEFAULT_THRESHOLD) if thresholds is None else thresholds
    return MultiLabelPredictions(
        split, names, labels, probabilities, class_names, probabilities >= used, used
    )


def choose_thresholds(truth: npt.NDArray[np.bool_], probabilities: Floats) -> Floats:
    """Return the threshold of each label, float64 [C] in 0..1, that gives the highest F1.

    truth: bool [N, C]; probabilities: float [N, C]. Candidates are the midpoints between neighbouring
    probabilities. 0.5 is kept unless a candidate is better; in a tie, the candidate nearest to 0.5 is chosen.
    A label that fewer than `FEWEST_FOR_THRESHOLD` of the images have, or lack, keeps 0.5.
    """
    return np.array(
        [_best_threshold(truth[:, label], probabilities[:, label]) for label in range(truth.shape[1])],
        np.float64,
    )


def _best_threshold(truth: npt.NDArray[np.bool_], scores: Floats) -> float:
    positives = int(truth.sum())
    if min(positives, len(truth) - positives) < FEWEST_FOR_THRESHOLD:
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    hits, predicted = np.cumsum(truth[order]), np.arange(1, len(order) + 1)
    is_between = ordered[:-1] > ordered[1:]
    f1 = (2 * hits / (predicted + positives))[:-1][is_between]
    middles = ((ordered[:-1] + ordered[1:]) / 2)[is_between]
    if not len(f1) or f1.max() <= _f1_at(truth, scores, DEFAULT_THRESHOLD):
        return DEFAULT_THRESHOLD
    best = middles[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - DEFAULT_THRESHOLD))])


def _f1_at(truth: npt.NDArray[np.bool_], scores: Floats, threshold: float) -> float:
    predicted = scores >= threshold
    return float(2 * np.sum(predicted & truth) / (predicted.sum() + truth.sum()))


def header_of(class_names: Sequence[str]) -> list[str]:
    """Return the column names of predictions.csv."""
    return [*COLUMNS, *(f"{kind}{name}" for kind in (LABEL, PREDICTED, PROBABILITY) for name in class_names)]


def is_header(cells: Sequence[str]) -> bool:
    """Return whether `cells` are the columns of a predictions.csv with any number of labels per image."""
    return tuple(cells[:2]) == COLUMNS and len(cells) > 2 and cells[2].startswith(LABEL)


def names_in(header: Sequence[str]) -> tuple[str, ...]:
    """Return the label names. Raises ValueError if the columns are not those of `header_of`."""
    names = tuple(cell.removeprefix(LABEL) for cell in header[2:] if cell.startswith(LABEL))
    if list(header) != header_of(names):
        raise ValueError(f"its columns are not {', '.join(header_of(('<label>',)))}, each for all labels")
    return names


def numbers_of_rows(predictions: MultiLabelPredictions) -> Iterator[list[float]]:
    """Yield the numeric cells of each row of predictions.csv: label, predicted, probability."""
    for labels, predicted, probabilities in zip(
        predictions.labels.tolist(),
        predictions.predicted.astype(int).tolist(),
        predictions.probabilities.astype(np.float64).tolist(),
        strict=True,
    ):
        yield [*labels, *predicted, *probabilities]


def read_rows(
    split: str, rows: Sequence[Sequence[str]], class_names: tuple[str, ...]
) -> MultiLabelPredictions:
    """Return the predictions in rows of predictions.csv, all of one split. Raises ValueError."""
    table = np.array([[float(cell) for cell in row[2:]] for row in rows]).reshape(len(rows), 3, -1)
    if not np.isin(table[:, :2], (0, 1)).all():
        raise ValueError("a label or a prediction is neither 0 nor 1")
    return MultiLabelPredictions(
        split=split,
        names=tuple(row[1] for row in rows),
        labels=table[:, 0].astype(np.int32),
        probabilities=table[:, 2],
        class_names=class_names,
        predicted=table[:, 1].astype(bool),
    )
