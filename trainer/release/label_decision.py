"""Release decision for multi-label classifiers.

Both models have predicted the same images; the result is a `LabelDecision`. As in
`trainer.compare.label_comparison`, mean average precision decides, by the paired bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.compare.label_comparison import MEASURE, bootstrap_labels
from trainer.compare.pair import say_p
from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.evaluate.significance import Test
from trainer.ranking import Ranking
from trainer.release.decided import ROUNDING, Decision
from trainer.report.label_verdict import constant_precision
from trainer.report.names import format_count

Floats = npt.NDArray[np.float64]
_LEVEL = 0.025
"""Significance level, one-sided, as in `trainer.report.guessing`."""


@dataclass(frozen=True)
class LabelDecision(Decision):
    """A decision based on `measure`; `worst_class_change` is a change of average precision."""

    measure: str = MEASURE


def decide_labels(
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
    averages = [_averages(each) for each in (champion, challenger)]
    changes = averages[1] - averages[0]
    is_known = not np.isnan(changes).all()
    worst = int(np.nanargmin(changes)) if is_known else 0
    change = min(0.0, float(changes[worst])) if is_known else 0.0
    name, missing = champion.class_names[worst], np.flatnonzero(np.isnan(changes))
    against = _why_not(test, min_gain, max_class_loss, name, change)
    if not against and len(missing) and max_class_loss < 1:
        against = (
            f"none of the images has {champion.class_names[missing[0]]}, so nobody can tell whether it loses "
            f"more than the {max_class_loss:g} of publish.max_class_loss"
        )
    against = against or why_guessing_labels(challenger)
    right = champion.right, challenger.right
    return LabelDecision(
        is_released=not against,
        reason=against or f"its mean average precision is higher: {_gain(test)}",
        challenger_accuracy=_mean(averages[1]),
        champion_accuracy=_mean(averages[0]),
        only_champion=int(np.sum(right[0] & ~right[1])),
        only_challenger=int(np.sum(right[1] & ~right[0])),
        count=len(champion.names),
        accuracy=test,
        worst_class=name,
        worst_class_change=change,
    )


def why_guessing_labels(answers: MultiLabelPredictions) -> str:
    """Return why the model may be no better than guessing; empty if it is significantly better."""
    ranking = Ranking(answers.truth, answers.probabilities)
    if not answers.truth.any():
        count = format_count(len(answers.names), "image")
        return f"nothing shows that it is better than guessing: none of its {count} has a label"
    if ranking.p_of_chance() < _LEVEL:
        return ""
    count = format_count(len(answers.names), "image")
    return (
        f"{count} can't tell it from guessing: its mean average precision is {ranking.mean():.3f}, and "
        f"a constant answer has {constant_precision(answers):.3f}"
    )


def _why_not(test: Test, min_gain: float, max_class_loss: float, worst: str, change: float) -> str:
    if test.difference <= 0:
        return f"its mean average precision is not higher: {_interval(test)}"
    if test.difference < min_gain:
        return f"it gains less than the {min_gain:g} that publish.min_gain asks for: {_interval(test)}"
    if test.is_chance:
        return f"its gain may be chance: {_gain(test)}"
    if -change > max_class_loss + ROUNDING:
        return (
            f"{worst} loses {-change:.3f} of its average precision, more than the {max_class_loss:g} of "
            f"publish.max_class_loss, though all in all it gains: {_interval(test)}"
        )
    return ""


def _interval(test: Test) -> str:
    return f"{test.difference:+.3f} (95% interval {test.low:+.3f} to {test.high:+.3f})"


def _gain(test: Test) -> str:
    return f"{_interval(test)}, paired bootstrap {say_p(test.p_value)}"


def _averages(answers: MultiLabelPredictions) -> Floats:
    return Ranking(answers.truth, answers.probabilities).average_precisions()


def _mean(averages: Floats) -> float:
    return 0.0 if np.isnan(averages).all() else float(np.nanmean(averages))
