"""Inputs of a verdict: predictions, training curves, settings and data of one run.

`build_case` makes a `Case` from predictions, history, settings and dataset.json. Held-out images that are
exact copies of training images are excluded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import special

from trainer.data.split import STRATIFIED
from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.evaluate.metrics import AnyPredictions, Predictions, wilson_interval
from trainer.evaluate.significance import constant_prediction
from trainer.report.history import History, read_series

_P = TypeVar("_P", Predictions, MultiLabelPredictions)
Indices = npt.NDArray[np.int64]

PENALTY, CROSS_VALIDATED = "probe/penalty", "probe/cross_validated_accuracy"
"""History keys of a head that was fitted by logistic regression."""

WIDEST_INTERVAL = 0.2
"""Width of the 95% interval of the accuracy above which there are too few held-out images."""
LARGEST_GAP = 0.08
"""Train minus held-out accuracy above which a run is overfitted.

Networks that memorise their training images have a gap of 0.2 and more (0.94 against 0.74 for the plain
network on 2,000 cats and dogs). Regularised networks have 0.02 to 0.07, which more regularisation rarely
lowers without lowering the held-out accuracy as well. 0.08 is above the second range and far below the first.
"""
LEAST_SKILL = 0.5
"""Skill on the training images below which a network has not learnt them yet. It does not depend on the
number of classes: 0.5 is an accuracy of 0.75 for two balanced classes and of 0.55 for ten."""
_NEGLECTED, _CHANCE = 1 / 3, 0.01
"""Ratio of recall to accuracy below which a class is neglected, and the significance level of that."""
_LEAST_CONTRADICTED = 3
_CONTRADICTED_SHARE, _CONTRADICTED_SHARE_OF_FEW = 0.2, 0.1
"""Minimum ratio of contradicted labels to training mistakes; the second is used if there are few mistakes."""
_LITTLE_SKILL = 0.3
"""Skill below which contradicted labels are not reported. Such a model contradicts most labels and errs as
often where it is confident, even if all labels are right (simulated for 2 to 1,000 classes: up to 0.28)."""
_WELL_KNOWN = 0.9
"""Training accuracy from which confident mistakes are rare unless labels are wrong."""
_CONFIDENT_MISTAKES = 0.6
"""Minimum error rate of the most confident quarter of the held-out predictions, relative to that of all. It
is 0.7 and more with wrong labels, which are independent of the confidence, and up to 0.5 where classes
overlap (generated data, CIFAR-10 at accuracy 0.5)."""


@dataclass(frozen=True)
class Score:
    """Number of correct predictions among some images."""

    correct: int
    count: int

    @property
    def share(self) -> float:
        """Share of correct predictions, in 0..1."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the share."""
        return wilson_interval(self.correct, self.count)


class AnyCase:
    """Inputs of a verdict that do not depend on the type of labels."""

    held_out: AnyPredictions
    history: History
    settings: Mapping[str, Any]

    def setting(self, path: str) -> Any:
        """Return the setting at a dotted key, or None if there is none."""
        value: Any = self.settings
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Train loss of each epoch."""
        return read_series(self.history, "train/loss").values

    @property
    def is_pretrained(self) -> bool:
        """Whether the network started from published weights."""
        return bool(self.setting("model.family") == "pretrained" and self.setting("model.weights") != "none")

    @property
    def is_probe(self) -> bool:
        """Whether only the head was trained, by logistic regression."""
        return len(self.history) == 1 and PENALTY in self.history[0]


@dataclass(frozen=True, eq=False)
class Case(AnyCase):
    """Inputs of the verdict on a run with one label per image; see `build_case`."""

    train: Predictions
    held_out: Predictions
    """Predictions for the held-out images without copies of training images; for all of them if all are
    copies."""
    whole: Predictions
    """Predictions for all held-out images."""
    copies: int
    """Number of held-out images that are exact copies of training images."""
    history: History
    settings: Mapping[str, Any]
    is_stratified: bool
    """Whether the held-out images are a share of the source, rather than chosen by the source."""

    @property
    def has_only_copies(self) -> bool:
        """Whether every held-out image is a copy of a training image."""
        return self.copies == len(self.whole.labels)

    @cached_property
    def train_score(self) -> Score:
        """Score on the training images."""
        return score_of(self.train)

    @cached_property
    def held_out_score(self) -> Score:
        """Score on the held-out images without copies."""
        return score_of(self.held_out)

    @property
    def cross_validated(self) -> float | None:
        """Cross-validated accuracy of logistic regression on the training images; None for other heads."""
        value = self.history[0].get(CROSS_VALIDATED) if self.is_probe else None
        return float(value) if isinstance(value, int | float) else None

    @property
    def has_few_images(self) -> bool:
        """Whether there are too few held-out images to measure the accuracy."""
        low, high = self.held_out_score.interval
        return high - low > WIDEST_INTERVAL

    @property
    def gap(self) -> float:
        """Train minus held-out accuracy."""
        return self.train_score.share - self.held_out_score.share

    @property
    def gap_interval(self) -> tuple[float, float]:
        """95% interval of the gap.

        Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10:
        combines the two Wilson intervals.
        """
        train, held_out = self.train_score, self.held_out_score
        below = math.hypot(train.share - train.interval[0], held_out.interval[1] - held_out.share)
        above = math.hypot(train.interval[1] - train.share, held_out.share - held_out.interval[0])
        return self.gap - below, self.gap + above

    @cached_property
    def neglected(self) -> list[tuple[str, float, int]]:
        """Classes that are rarely recognised: (name, recall, held-out images), lowest recall first.

        Their recall is less than a third of the accuracy, by more than chance (binomial test with Bonferroni
        correction).
        """
        rows = [
            (name, recall, count)
            for name, recall, count in recalls(self.held_out)
            if recall < _NEGLECTED * self.held_out_score.share
            and special.bdtr(round(recall * count), count, self.held_out_score.share)
            < _CHANCE / len(self.held_out.class_names)
        ]
        return sorted(rows, key=lambda row: row[1])

    @cached_property
    def contradicted(self) -> Indices:
        """Training images whose label the model confidently contradicts, see `contradictions`.

        Empty if the model has little skill, if few of its mistakes are confident, or if a model with many
        mistakes errs less where it is more confident, as with overlapping classes.
        """
        score, images = self.train_score, contradictions(self.train)
        if skill(self.train) < _LITTLE_SKILL:
            return images[:0]
        is_well_known = score.share >= _WELL_KNOWN
        share = _CONTRADICTED_SHARE_OF_FEW if is_well_known else _CONTRADICTED_SHARE
        is_many = len(images) >= max(_LEAST_CONTRADICTED, share * (score.count - score.correct))
        return images if is_many and (is_well_known or _errs_when_confident(self.held_out)) else images[:0]


def build_case(
    predictions: Mapping[str, Predictions],
    history: History,
    held_out: str,
    settings: Mapping[str, Any],
    dataset: Mapping[str, Any],
) -> Case:
    """Return the `Case` of a run; `dataset` is the content of dataset.json (with the copies) or empty."""
    whole = predictions[held_out]
    distinct, copies = without_copies(whole, dataset)
    # Shards are split when they are packed.
    is_stratified = dataset.get("split_by") == STRATIFIED and dataset.get("layout") != "shards"
    return Case(predictions["train"], distinct, whole, copies, history, settings, is_stratified)


def without_copies(predictions: _P, dataset: Mapping[str, Any]) -> tuple[_P, int]:
    """Return the held-out `predictions` without copies of training images, and the number of copies.

    If all images are copies, all predictions are returned.
    """
    copies = copied_names(dataset, predictions.split)
    is_copy = np.array([name in copies for name in predictions.names], dtype=bool)
    if is_copy.any() and not is_copy.all():
        return predictions.select(np.flatnonzero(~is_copy)), int(np.sum(is_copy))
    return predictions, int(np.sum(is_copy))


def score_of(predictions: AnyPredictions) -> Score:
    """Return the number of correct predictions and of images."""
    return Score(int(np.sum(predictions.right)), len(predictions.labels))


def recalls(predictions: Predictions) -> list[tuple[str, float, int]]:
    """Return (name, recall, images) of each class that has images."""
    right = predictions.predicted == predictions.labels
    counts = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    hits = np.bincount(predictions.labels[right], minlength=len(counts))
    return [
        (name, int(hit) / int(count), int(count))
        for name, hit, count in zip(predictions.class_names, hits, counts, strict=True)
        if count
    ]


def skill(predictions: Predictions) -> float:
    """Return the accuracy or the mean recall, whichever is better, rescaled against guessing.

    0 is as good as always predicting the most frequent class, 1 is no mistake.
    """
    class_recalls = [recall for _, recall, _ in recalls(predictions)]
    pairs = (
        (score_of(predictions).share, constant_prediction(predictions)[1]),
        (sum(class_recalls) / len(class_recalls), 1 / len(class_recalls)),
    )
    return max((value - guess) / (1 - guess) if guess < 1 else 1.0 for value, guess in pairs)


def contradictions(predictions: Predictions) -> Indices:
    """Return the images that are confidently predicted as another class, most confident first.

    A prediction is confident if its probability is at least the mean probability of that class over the
    images labelled with it (confident learning: Northcutt, Jiang and Chuang 2021).
    """
    own = predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels]
    counts = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    sums = np.bincount(predictions.labels, weights=own, minlength=len(counts))
    means = np.divide(sums, counts, out=np.ones(len(counts)), where=counts > 0)
    is_confident = predictions.confidence >= means[predictions.predicted]
    images = np.flatnonzero(is_confident & (predictions.predicted != predictions.labels))
    return np.asarray(images[np.argsort(-predictions.confidence[images], kind="stable")], dtype=np.int64)


def _errs_when_confident(predictions: Predictions) -> bool:
    """Return whether the most confident quarter of the predictions errs nearly as often as all of them."""
    is_wrong = predictions.predicted != predictions.labels
    confident = np.argsort(-predictions.confidence, kind="stable")[: max(1, len(is_wrong) // 4)]
    return bool(is_wrong.any() and is_wrong[confident].mean() >= _CONFIDENT_MISTAKES * is_wrong.mean())


def copied_names(dataset: Mapping[str, Any], held_out: str) -> set[str]:
    """Return the names of the held-out images that are exact copies of training images."""
    groups = dataset.get("duplicates_across_splits", {}).get("images", [])
    return {
        item["name"]
        for group in groups
        if any(item["split"] == "train" for item in group)
        for item in group
        if item["split"] == held_out
    }
