"""The verdict of a report, including the effect of chance on its figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.verdict_cases import answers, both, copied, flat, rising, ten, unequal, verdict

from trainer.report.history import find_best_epoch, is_rising
from trainer.report.verdict import judge


def test_headline_has_accuracies_verdict_and_gap() -> None:
    result = verdict(0.957, 0.924)
    assert result.kind == "fine"
    assert result.headline == (
        "validation accuracy 0.924 (95% interval 0.906 to 0.939), train accuracy 0.957: fits well (gap 0.033)"
    )
    assert result.weakest_class == "cats"
    assert result.weakest_recall == pytest.approx(0.914)
    assert "cats (recall 0.914)" in result.advice


def test_run_with_large_gap_is_overfitted() -> None:
    result = verdict(0.99, 0.72)
    assert result.kind == "over-fitted"
    assert result.headline.endswith("train accuracy 0.990: overfitted (gap 0.270)")


def test_small_gap_of_regularised_run_is_not_overfitting() -> None:
    assert verdict(0.979, 0.90).kind == "fine"
    assert verdict(0.985, 0.90).kind == "over-fitted"


def test_gap_on_few_images_is_not_called_overfitting() -> None:
    result = verdict(0.90, 0.80, count=20)
    assert result.gap == pytest.approx(0.1)
    assert result.gap_low < 0 < result.gap_high
    assert result.kind == "fine"
    assert "fits well, as far as 20 images can show (gap 0.100, 95% interval -" in result.headline
    assert "Hold out more images" in result.advice
    assert verdict(0.90, 0.80, count=1000).kind == "over-fitted"


def test_gap_interval_matches_example_of_newcombe() -> None:
    # Newcombe 1998, table II, (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339.
    result = judge(
        {
            "train": answers("train", {"a": (35, 0.8), "b": (35, 0.8)}),
            "test": answers("test", {"a": (40, 0.6), "b": (40, 0.6)}),
        },
        [],
        "test",
        {},
    )
    assert (result.gap_low, result.gap_high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_run_that_guesses_on_held_out_images_is_guessing_at_any_train_accuracy() -> None:
    for train in (0.52, 0.99):
        result = verdict(train, 0.51)
        assert result.kind == "guessing"
        assert result.headline.endswith("no better than guessing (always predicting cats gives 0.500)")
    assert "Check whether the labels are correct" in verdict(0.99, 0.51).advice
    assert verdict(0.99, 0.56).kind == "over-fitted"


def test_labels_are_not_blamed_when_held_out_images_are_few() -> None:
    for held, kind in ((0.6, "unproven"), (0.5, "guessing")):
        result = verdict(0.99, held, count=20)
        assert result.kind == kind
        assert "labels" not in result.advice
        assert "Hold out more images. With 20 images" in result.advice


@pytest.mark.parametrize(
    ("held", "conclusion", "advice"),
    [
        ((2, 2, 0), "because 4 images cannot show whether it beats guessing "
         "(always predicting a gives 0.500)",
         "Hold out images of c too: validation has none. Hold out more images"),
        ((1, 0, 0), "inconclusive, because all validation images are of a",
         "Hold out images of b and 1 other class too: validation has none. Hold out more images"),
        ((80, 0, 0), "inconclusive, because all validation images are of a",
         "Hold out images of b and 1 other class too: validation has none."),
    ],
)  # fmt: skip
def test_too_few_held_out_images_are_inconclusive(
    held: tuple[int, ...], conclusion: str, advice: str
) -> None:
    predictions = {
        "train": answers("train", dict.fromkeys("abc", (40, 1.0))),
        "validation": answers("validation", {name: (n, 1.0) for name, n in zip("abc", held, strict=True)}),
    }
    result = judge(predictions, flat(), "validation", {})
    assert result.kind == "unproven"
    assert result.headline.endswith(conclusion)
    assert result.advice.startswith(advice)


def test_class_without_held_out_images_is_named() -> None:
    held = answers("validation", {"a": (50, 0.96), "b": (50, 1.0), "c": (0, 0.0)})
    train = answers("train", dict.fromkeys("abc", (100, 0.97)))
    result = judge({"train": train, "validation": held}, flat(), "validation", {})
    assert result.advice.endswith("Hold out images of c too: validation has none.")


def test_low_train_accuracy_is_not_called_memorising() -> None:
    for predictions in (both(0.56, 0.51), unequal(0.5, 0.9)):
        advice = judge(predictions, flat(), "validation", {}).advice
        assert "memorises" not in advice


def test_predicting_only_the_majority_class_is_guessing_with_advice_on_class_weights() -> None:
    result = judge(unequal(1.0, 0.0), flat(), "validation", {"train": {"class_weights": "none"}})
    assert result.kind == "guessing"
    assert (
        "always predicting common gives 0.950); rare is never recognised (recall 0.000 on 50"
        in result.headline
    )
    assert result.advice.startswith("The classes are imbalanced, and rare is rarely recognised")
    assert "--set train.class_weights=balanced" in result.advice
    weighted = {"train": {"class_weights": "balanced"}}
    assert "class_weights" not in judge(unequal(1.0, 0.0), flat(), "validation", weighted).advice


def test_recognising_the_rare_class_is_not_guessing_at_equal_accuracy() -> None:
    result = judge(unequal(0.95, 0.9), flat(), "validation", {})
    assert result.kind == "fine"


def test_class_that_is_never_recognised_is_the_verdict() -> None:
    result = judge(ten(0.0), flat(), "validation", {})
    assert result.kind == "neglected"
    assert result.headline.endswith("last is never recognised (recall 0.000 on 20 images)")
    assert "Add images of last" in result.advice
    assert judge(ten(0.75), flat(), "validation", {}).kind == "fine"
    assert judge(ten(0.0, images=2), flat(), "validation", {}).kind != "neglected"  # two images may be chance


def test_one_epoch_is_too_early_to_judge_and_neglected_class_is_named() -> None:
    result = verdict(0.95, 0.94, flat(epochs=1))
    assert result.kind == "early"
    assert result.headline.endswith("too early to judge after 1 epoch")
    assert result.advice == "Train longer: --set train.epochs=10."
    assert "after 2 epochs" in verdict(0.95, 0.94, flat(epochs=2)).headline
    assert verdict(0.95, 0.94, flat(epochs=3)).kind == "fine"
    # A warm start from the weights of an earlier run.
    assert verdict(0.95, 0.94, flat(epochs=1), settings={"train": {"start_from": "latest"}}).kind == "fine"
    assert "Hold out more images. With 20 images" in verdict(0.95, 0.94, flat(epochs=1), count=20).advice
    result = judge(ten(0.0), flat(epochs=1), "validation", {})
    assert result.headline.endswith("after 1 epoch; last is never recognised (recall 0.000 on 20 images)")


def test_copies_of_training_images_are_excluded_and_both_accuracies_are_reported() -> None:
    predictions = {
        "train": answers("train", {"cats": (500, 1.0), "dogs": (500, 1.0)}),
        "validation": answers("validation", {"cats": (220, 200 / 220), "dogs": (80, 0.625)}),
    }
    result = judge(predictions, rising(), "validation", {}, copied(140))
    assert result.kind == "over-fitted"
    assert result.headline == (
        "validation accuracy 0.688 without 140 exact copies of training images (95% interval 0.612 to 0.754; "
        "0.833 with the copies), train accuracy 1.000: overfitted (gap 0.312)"
    )
    assert result.advice.startswith("Remove the 140 copies from validation; dataset.json lists them")
    assert judge(predictions, flat(), "validation", {}, copied(300)).kind == "copied"
    assert "Remove" not in judge(predictions, flat(), "validation", {}, copied(2)).advice


def test_low_train_accuracy_is_undertrained() -> None:
    result = verdict(0.70, 0.69)
    assert result.kind == "under-trained"
    assert "the train accuracy is low" in result.headline


def test_run_with_low_train_accuracy_is_not_overfitted() -> None:
    result = verdict(0.65, 0.55)
    assert result.kind == "under-trained"
    assert "gap" not in result.headline


def test_rising_curve_is_undertrained() -> None:
    result = verdict(0.82, 0.80, rising())
    assert result.kind == "under-trained"
    assert "still rising" in result.headline
    assert "train.epochs=20" in result.advice


def test_flat_curve_is_not_rising() -> None:
    assert not is_rising(flat(), "validation")
    assert is_rising(rising(), "validation")
    assert not is_rising(rising(step=0.001), "validation")


def test_noise_rarely_counts_as_rising() -> None:
    rng = np.random.default_rng(0)
    noisy = [[row | {"validation/accuracy": 0.8 + rng.normal() * 0.01} for row in flat()] for _ in range(200)]
    assert sum(is_rising(history, "validation") for history in noisy) <= 14


def test_curve_is_not_rising_after_the_learning_rate_has_decayed() -> None:
    annealed = [
        row | {"learning_rate": 0.0005 * (1 + math.cos(math.pi * row["epoch"] / 10))} for row in rising()
    ]
    assert not is_rising(annealed, "validation")
    assert verdict(0.82, 0.80, annealed).kind == "fine"


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [([0.8], False), ([0.7, 0.8], True), ([0.7, 0.8, 0.79], False), ([0.7, 0.71, 0.715], False), ([], False)],
)
def test_few_epochs_count_as_rising_if_the_last_is_clearly_the_best(
    accuracies: list[float], expected: bool
) -> None:
    history = [{"epoch": n, "validation/accuracy": value} for n, value in enumerate(accuracies, start=1)]
    assert is_rising(history, "validation") is expected


def test_epochs_without_validation_are_ignored() -> None:
    history = [
        row if row["epoch"] % 2 == 0 else {"epoch": row["epoch"], "train/loss": 0.1}
        for row in rising(epochs=20)
    ]
    assert is_rising(history, "validation")
    assert find_best_epoch(history, "validation", "accuracy") == 20


def test_best_epoch_is_the_first_of_a_tie() -> None:
    history = [
        {"epoch": epoch, "test/accuracy": accuracy, "test/loss": loss}
        for epoch, accuracy, loss in [(1, 0.7, 0.4), (2, 0.9, 0.3), (3, 0.9, 0.2), (4, None, float("nan"))]
    ]
    assert find_best_epoch(history, "test", "accuracy") == 2
    assert find_best_epoch(history, "test", "loss") == 3
    assert find_best_epoch([], "test", "loss") is None


def test_headline_names_the_held_out_split() -> None:
    result = judge(both(0.957, 0.924, held_out="test"), [], "test", {})
    assert result.headline.startswith("test accuracy 0.924")
