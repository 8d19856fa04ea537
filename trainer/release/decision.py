"""Release decision for classifiers: accuracy gain, better than guessing, and loss per class.

Both models have predicted the same images; the result is a `Decision` with its metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from trainer.compare.pair import say_p
from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.evaluate.metrics import AnyPredictions, Predictions
from trainer.evaluate.significance import Test, paired_accuracies
from trainer.release.decided import ROUNDING, Decision
from trainer.release.label_decision import decide_labels, why_guessing_labels
from trainer.report.guessing import beats_guessing, constant_prediction, has_unequal_classes
from trainer.report.names import format_count


def decide(
    champion: AnyPredictions, challenger: AnyPredictions, min_gain: float, max_class_loss: float
) -> Decision:
    """Return whether the challenger replaces the champion; see `decide_labels` and `_decide_classes`."""
    if isinstance(champion, MultiLabelPredictions) and isinstance(challenger, MultiLabelPredictions):
        return decide_labels(champion, challenger, min_gain, max_class_loss)
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
    right = [each.predicted == each.labels for each in (champion, challenger)]
    only_champion, only_challenger = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    test = paired_accuracies(only_champion, only_challenger, len(champion.labels))
    changes = _recall_changes(champion, right)
    worst = min(changes, key=lambda name: changes[name])
    change = min(0.0, changes[worst])
    missing = [name for label, name in enumerate(champion.class_names) if label not in champion.labels]
    is_released, reason = _reason(test, min_gain, max_class_loss, worst, change, missing)
    against = _why_no_gain(challenger, changes, reason) if is_released else ""
    is_released, reason = is_released and not against, against or reason
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
    gain = f"{test.difference:+.3f} (95% interval {test.low:+.3f} to {test.high:+.3f})"
    if test.difference <= 0:
        return False, f"it is not more accurate: {gain}"
    if test.difference < min_gain:
        return False, f"it gains less than the {min_gain:g} that publish.min_gain asks for: {gain}"
    if test.is_chance:
        return False, f"its gain may be chance: {gain}, exact McNemar {say_p(test.p_value)}"
    if missing and max_class_loss < 1:
        return False, (
            f"none of the images is of {missing[0]}, so nobody can tell whether it loses more than the "
            f"{max_class_loss:g} of publish.max_class_loss"
        )
    if -change > max_class_loss + ROUNDING:
        return False, (
            f"{worst} loses {-change:.3f} of its recall, more than the {max_class_loss:g} of "
            f"publish.max_class_loss, though all in all it gains: {gain}"
        )
    return True, f"it is more accurate: {gain}, exact McNemar {say_p(test.p_value)}"


def why_guessing(answers: AnyPredictions) -> str:
    """Return why the model may be no better than guessing; empty if it is significantly better."""
    if isinstance(answers, MultiLabelPredictions):
        return why_guessing_labels(answers)
    if beats_guessing(answers):
        return ""
    name, share = constant_prediction(answers)
    accuracy = float(np.mean(answers.predicted == answers.labels))
    count = format_count(len(answers.labels), "image")
    if share == 1:
        return f"nothing shows that it is better than guessing: all of its {count} are of {name}"
    if accuracy > share:
        beginning = f"{count} can't tell it from guessing: its accuracy is {accuracy:.3f}"
    else:
        beginning = f"it is no better than guessing: its accuracy is {accuracy:.3f}"
    return f"{beginning}, and always answering {name} gives {share:.3f}"


def _why_no_gain(challenger: Predictions, changes: Mapping[str, float], gain: str) -> str:
    """Return why a gain of accuracy does not count; empty if it does."""
    if guessing := why_guessing(challenger):
        return guessing
    mean = float(np.mean(list(changes.values())))
    if mean < -ROUNDING and has_unequal_classes(challenger):
        return f"the classes are unequal, and the mean of their recalls falls by {-mean:.3f}, though {gain}"
    return ""


def _recall_changes(champion: Predictions, right: list[np.ndarray]) -> dict[str, float]:
    """Return the change of recall of each class that has images, challenger minus champion."""
    return {
        champion.class_names[label]: float(np.mean(right[1][of_class]) - np.mean(right[0][of_class]))
        for label in np.unique(champion.labels)
        for of_class in [champion.labels == label]
    }
