"""Release decision: a challenger must be significantly better, without a large loss in any class."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.release_inputs import GAIN, LOSS, answers

from trainer.evaluate.metrics import Predictions
from trainer.release.decision import Decision, decide, why_guessing


def pair(random: np.random.Generator, gain: float, count: int = 1000) -> tuple[Predictions, Predictions]:
    """Return champion and challenger; the latter gains `gain`, and they differ on a share of 0.1 + `gain`."""
    labels = np.arange(count) % 2
    kinds = random.choice(4, count, p=[0.05, 0.05 + gain, 0.75, 0.15 - gain])
    return answers(np.isin(kinds, (0, 2)), labels), answers(np.isin(kinds, (1, 2)), labels)


def released(gain: float, count: int = 1000, times: int = 1000) -> float:
    random = np.random.default_rng(4)
    return float(np.mean([decide(*pair(random, gain, count), GAIN, LOSS).is_released for _ in range(times)]))


def test_release_rate_is_low_for_equal_models_and_high_for_better_ones() -> None:
    assert released(0.0) <= 0.05
    assert released(0.05) >= 0.8
    assert released(0.0, count=200) <= 0.05


def test_release_requires_all_three_conditions() -> None:
    random = np.random.default_rng(5)
    champion, challenger = pair(random, 0.05)
    decision = decide(champion, challenger, GAIN, LOSS)
    assert decision.is_released
    assert decision.reason.startswith("it is more accurate: +0.0")
    assert decision.accuracy.difference == pytest.approx(
        decision.challenger_accuracy - decision.champion_accuracy
    )
    assert "below publish.min_gain (0.2)" in decide(champion, challenger, 0.2, LOSS).reason
    assert "it is not more accurate" in decide(challenger, champion, GAIN, LOSS).reason
    assert "it is not more accurate: +0.000" in decide(champion, champion, GAIN, LOSS).reason
    few = [replace(each, names=each.names[:40], labels=each.labels[:40],
    probabilities=each.probabilities[:40])
           for each in (champion, challenger)]  # fmt: skip
    assert not decide(*few, GAIN, LOSS).is_released
    few = [answers(np.arange(40) < right, np.arange(40) % 2) for right in (30, 33)]
    assert "is not significant" in decide(*few, GAIN, 1.0).reason


def test_release_is_refused_when_a_class_loses_recall() -> None:
    labels = np.arange(1000) % 2
    champion = answers(np.arange(1000) >= 300, labels)
    right = np.where(labels == 0, True, np.arange(1000) >= 400)
    decision = decide(champion, answers(right, labels), GAIN, 0.05)
    assert not decision.is_released
    assert decision.worst_class == "dogs"
    assert decision.worst_class_change == pytest.approx(-0.1)
    assert "the recall of dogs falls by 0.100, more than publish.max_class_loss (0.05)" in decision.reason
    assert decide(champion, answers(right, labels), GAIN, 0.11).is_released


def test_class_may_lose_exactly_max_class_loss() -> None:
    labels = np.repeat([0, 1], [20, 1000])
    champion = answers(np.arange(1020) < 600, labels)
    challenger = answers((np.arange(1020) > 0) & (np.arange(1020) < 800), labels)
    decision = decide(champion, challenger, GAIN, 0.05)  # loses one of 20
    assert decision.worst_class_change == pytest.approx(-0.05)
    assert decision.is_released
    assert not decide(champion, challenger, GAIN, 0.049).is_released


def test_challenger_no_better_than_guessing_does_not_replace_a_worse_champion() -> None:
    labels = np.arange(100) % 2
    decision = decide(answers(np.arange(100) < 20, labels), answers(np.arange(100) < 50, labels), GAIN, 1.0)
    assert not decision.is_released
    assert decision.reason.startswith("it is no better than guessing: its accuracy is 0.500")


def test_mean_recall_must_not_fall_with_unequal_classes() -> None:
    labels = np.repeat([0, 1], [950, 50])
    champion = answers(np.arange(1000) >= 60, labels)  # 890 of 950, and all of 50
    always_the_large = answers(labels == 0, labels)
    decision = decide(champion, answers(np.arange(1000) < 990, labels), GAIN, 0.3)
    assert not decision.is_released
    assert "their mean recall falls by 0.068, although it is more accurate: +0.05" in decision.reason
    assert not decide(champion, always_the_large, GAIN, 1.0).is_released


def test_class_without_images_prevents_a_release() -> None:
    labels = np.zeros(100, int)
    champion, challenger = (answers(np.arange(100) < right, labels) for right in (50, 90))
    decision = decide(champion, challenger, GAIN, 0.05)
    assert not decision.is_released
    assert "no image is of class dogs" in decision.reason
    # Without a limit per class, a model that always predicts cats would score the same.
    decision = decide(champion, challenger, GAIN, 1.0)
    assert not decision.is_released
    assert decision.reason == "it cannot be compared with guessing: all of its 100 images are of class cats"


def test_constant_classifier_is_not_released_when_a_class_has_no_images() -> None:
    labels = np.repeat([0, 1], [60, 40])
    names, classes = tuple(map(str, range(100))), ("cats", "dogs", "birds")
    poor, constant = (
        Predictions("test", names, labels.astype(np.int32), np.eye(3)[predicted], classes)
        for predicted in (np.full(100, 2), np.zeros(100, int))
    )
    decision = decide(poor, constant, GAIN, 1.0)
    assert not decision.is_released
    assert decision.reason.startswith("it is no better than guessing: its accuracy is 0.600")


def test_few_images_without_errors_count_as_better_than_guessing() -> None:
    assert why_guessing(answers(np.ones(4, bool), np.arange(4) % 2)) == (
        "it is not significantly better than guessing on 4 images: its accuracy is 1.000, and always "
        "predicting cats gives 0.500"
    )
    assert why_guessing(answers(np.ones(6, bool), np.arange(6) % 2)) == ""


def test_decision_reports_all_metrics() -> None:
    decision = decide(*pair(np.random.default_rng(1), 0.05), GAIN, LOSS)
    assert isinstance(decision, Decision)
    assert json.dumps(decision.__dict__, default=lambda each: each.__dict__)
    assert decision.only_challenger - decision.only_champion == pytest.approx(
        1000 * decision.accuracy.difference
    )
