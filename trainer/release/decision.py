"""Release decision: whether a challenger replaces the champion.

Both models have predicted the same images; the result is a `Decision` with its metrics. Classifiers are
compared by accuracy (exact McNemar test). As in `trainer.compare.comparison`, mean average precision
decides for several labels per image, by the paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from trainer.compare.comparison import MEASURE, bootstrap_labels
from trainer.compare.pair import p_text
from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.evaluate.metrics import AnyPredictions, Predictions
from trainer.evaluate.significance import (
    Test,
    beats_guessing,
    constant_prediction,
    has_unequal_classes,
    paired_accuracies,
)
from trainer.ranking import Ranking
from trainer.report.label_verdict import constant_precision
from trainer.report.names import format_count

Floats = npt.NDArray[np.float64]
_LEVEL = 0.025
"""Significance level, one-sided, as in `trainer.evaluate.significance`."""
_ROUNDING = 1e-9
"""Tolerance for rounding errors of a difference of two shares that may equal the limit exactly."""


@dataclass(frozen=True)
class Decision:
    """Decision on one challenger."""

    is_released: bool
    reason: str
    """Reason as a sentence."""
    challenger_accuracy: float
    champion_accuracy: float
    only_champion: int
    only_challenger: int
    """Number of images that only one of the models classifies correctly."""
    count: int
    """Number of images."""
    accuracy: Test
    """Challenger minus champion."""
    worst_class: str
    worst_class_change: float
    """Largest loss of recall of any class, as a negative number; 0 if no class loses."""


@dataclass(frozen=True)
class LabelDecision(Decision):
    """A decision based on `measure`; `worst_class_change` is a change of average precision."""

    measure: str = MEASURE


def decide(
    champion: AnyPredictions, challenger: AnyPredictions, min_gain: float, max_class_loss: float
) -> Decision:
    """Return whether the challenger replaces the champion; see `_decide_labels` and `_decide_classes`."""
    if isinstance(champion, MultiLabelPredictions) and isinstance(challenger, MultiLabelPredictions):
        return _decide_labels(champion, challenger, min_gain, max_class_loss)
    return _decide_classes(
        cast(Predictions, champion), cast(Predictions, challenger), min_gain, max_class_loss
    )


def _decide_classes(
    champion: Predictions, challenger: Predictions, min_gain: float, max_class_loss: float
) -> Decision:
    """Return whether the challenger replaces the champion, which requires all of the following.

    Its accuracy is higher by at least `min_gain`, and significantly so by McNemar's exact test. It is better
    than guessing. No class loses more than `max_class_loss` of its recall. If classes have unequal sizes, the
    mean of their recalls does not fall. All shares are in 0..1. Both predict the same images in the same
    order.
    """
    right = [predictions.right for predictions in (champion, challenger)]
    only_champion, only_challenger = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    test = paired_accuracies(only_champion, only_challenger, len(champion.labels))
    changes = _recall_changes(champion, right)
    worst = min(changes, key=lambda name: changes[name])
    change = min(0.0, changes[worst])
    missing = [name for label, name in enumerate(champion.class_names) if label not in champion.labels]
    is_released, reason = _reason(test, min_gain, max_class_loss, worst, change, missing)
    objection = _why_no_gain(challenger, changes, reason) if is_released else ""
    is_released, reason = is_released and not objection, objection or reason
    return Decision(
        is_released=is_released,
        reason=reason,
        challenger_accuracy=float(np.mean(right[1])),
        champion_accuracy=float(np.mean(right[0])),
        only_champion=only_champion,
        only_challenger=only_challenger,
        count=len(champion.labels),
        accuracy=test,
        worst_class=worst,
        worst_class_change=change,
    )


def _reason(
    test: Test, min_gain: float, max_class_loss: float, worst: str, change: float, missing: Sequence[str]
) -> tuple[bool, str]:
    gain = _difference_text(test)
    if test.difference <= 0:
        return False, f"it is not more accurate: {gain}"
    if test.difference < min_gain:
        return False, f"its gain is below publish.min_gain ({min_gain:g}): {gain}"
    if test.is_chance:
        return False, f"its gain is not significant: {gain}, exact McNemar {p_text(test.p_value)}"
    if missing and max_class_loss < 1:
        return False, (
            f"no image is of class {missing[0]}, so its loss of recall cannot be compared with "
            f"publish.max_class_loss ({max_class_loss:g})"
        )
    if -change > max_class_loss + _ROUNDING:
        return False, (
            f"the recall of {worst} falls by {-change:.3f}, more than publish.max_class_loss "
            f"({max_class_loss:g}), although accuracy rises: {gain}"
        )
    return True, f"it is more accurate: {gain}, exact McNemar {p_text(test.p_value)}"


def why_guessing(predictions: AnyPredictions) -> str:
    """Return why the model may be no better than guessing; empty if it is significantly better."""
    if isinstance(predictions, MultiLabelPredictions):
        return _why_guessing_labels(predictions)
    if beats_guessing(predictions):
        return ""
    name, share = constant_prediction(predictions)
    accuracy = float(np.mean(predictions.predicted == predictions.labels))
    count = format_count(len(predictions.labels), "image")
    if share == 1:
        return f"it cannot be compared with guessing: all of its {count} are of class {name}"
    if accuracy > share:
        beginning = f"it is not significantly better than guessing on {count}: its accuracy is {accuracy:.3f}"
    else:
        beginning = f"it is no better than guessing: its accuracy is {accuracy:.3f}"
    return f"{beginning}, and always predicting {name} gives {share:.3f}"


def _why_no_gain(challenger: Predictions, changes: Mapping[str, float], gain: str) -> str:
    """Return why a gain of accuracy does not count; empty if it does."""
    if guessing := why_guessing(challenger):
        return guessing
    mean = float(np.mean(list(changes.values())))
    if mean < -_ROUNDING and has_unequal_classes(challenger):
        return f"the classes are unequal, and their mean recall falls by {-mean:.3f}, although {gain}"
    return ""


def _recall_changes(champion: Predictions, right: list[np.ndarray]) -> dict[str, float]:
    """Return the change of recall of each class that has images, challenger minus champion."""
    return {
        champion.class_names[label]: float(np.mean(right[1][of_class]) - np.mean(right[0][of_class]))
        for label in np.unique(champion.labels)
        for of_class in [champion.labels == label]
    }


def _decide_labels(
    champion: MultiLabelPredictions,
    challenger: MultiLabelPredictions,
    min_gain: float,
    max_class_loss: float,
) -> LabelDecision:
    """Return whether the challenger replaces the champion, which requires all of the following.

    Its mean average precision is higher by at least `min_gain`, and significantly so by the paired bootstrap.
    It is better than guessing. No label loses more than `max_class_loss` of its average precision. Both
    predict the same images in the same order.
    """
    test = bootstrap_labels(champion, challenger)[MEASURE]
    averages = [_averages(predictions) for predictions in (champion, challenger)]
    changes = averages[1] - averages[0]
    is_known = not np.isnan(changes).all()
    worst = int(np.nanargmin(changes)) if is_known else 0
    change = min(0.0, float(changes[worst])) if is_known else 0.0
    name, missing = champion.class_names[worst], np.flatnonzero(np.isnan(changes))
    objection = _why_no_label_gain(test, min_gain, max_class_loss, name, change)
    if not objection and len(missing) and max_class_loss < 1:
        objection = (
            f"no image has {champion.class_names[missing[0]]}, so its loss cannot be compared with "
            f"publish.max_class_loss ({max_class_loss:g})"
        )
    objection = objection or _why_guessing_labels(challenger)
    right = champion.right, challenger.right
    return LabelDecision(
        is_released=not objection,
        reason=objection or f"its mean average precision is higher: {_tested_text(test)}",
        challenger_accuracy=_mean(averages[1]),
        champion_accuracy=_mean(averages[0]),
        only_champion=int(np.sum(right[0] & ~right[1])),
        only_challenger=int(np.sum(right[1] & ~right[0])),
        count=len(champion.names),
        accuracy=test,
        worst_class=name,
        worst_class_change=change,
    )


def _why_guessing_labels(predictions: MultiLabelPredictions) -> str:
    """Return why the model may be no better than guessing; empty if it is significantly better."""
    ranking = Ranking(predictions.truth, predictions.probabilities)
    if not predictions.truth.any():
        count = format_count(len(predictions.names), "image")
        return f"it cannot be compared with guessing: none of its {count} has a label"
    if ranking.p_of_chance() < _LEVEL:
        return ""
    count = format_count(len(predictions.names), "image")
    return (
        f"it is not significantly better than guessing on {count}: its mean average precision is "
        f"{ranking.mean():.3f}, and a constant prediction has {constant_precision(predictions):.3f}"
    )


def _why_no_label_gain(test: Test, min_gain: float, max_class_loss: float, worst: str, change: float) -> str:
    if test.difference <= 0:
        return f"its mean average precision is not higher: {_difference_text(test)}"
    if test.difference < min_gain:
        return f"its gain is below publish.min_gain ({min_gain:g}): {_difference_text(test)}"
    if test.is_chance:
        return f"its gain is not significant: {_tested_text(test)}"
    if -change > max_class_loss + _ROUNDING:
        return (
            f"the average precision of {worst} falls by {-change:.3f}, more than publish.max_class_loss "
            f"({max_class_loss:g}), although the mean rises: {_difference_text(test)}"
        )
    return ""


def _difference_text(test: Test) -> str:
    return f"{test.difference:+.3f} (95% interval {test.low:+.3f} to {test.high:+.3f})"


def _tested_text(test: Test) -> str:
    return f"{_difference_text(test)}, paired bootstrap {p_text(test.p_value)}"


def _averages(predictions: MultiLabelPredictions) -> Floats:
    return Ranking(predictions.truth, predictions.probabilities).average_precisions()


def _mean(averages: Floats) -> float:
    return 0.0 if np.isnan(averages).all() else float(np.nanmean(averages))
