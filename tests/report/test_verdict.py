"""The verdict of a report, including the effect of chance on its figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.verdict_cases import answers, both, copied, flat, rising, ten, unequal, verdict

from trainer.report.history import find_best_epoch, is_rising
from trainer.report.verdict import judge


def test_headline_says_it_in_one_line() -> None:
    found = verdict(0.957, 0.924)
    assert found.kind == "fine"
    assert found.headline == (
        "validation accuracy 0.924 (95% interval 0.906 to 0.939), train 0.957: fits well (gap 0.033)"
    )
    assert found.weakest_class == "cats"
    assert found.weakest_recall == pytest.approx(0.914)
    assert "cats (recall 0.914)" in found.advice


def test_paper_run_is_over_fitted() -> None:
    found = verdict(0.99, 0.72)
    assert found.kind == "over-fitted"
    assert found.headline.endswith("train 0.990: over-fitted (gap 0.270)")


def test_gap_of_regularised_runs_is_not_over_fitting() -> None:
    assert verdict(0.979, 0.90).kind == "fine"
    assert verdict(0.985, 0.90).kind == "over-fitted"


def test_gap_of_few_images_may_be_chance() -> None:
    found = verdict(0.90, 0.80, count=20)
    assert found.gap == pytest.approx(0.1)
    assert found.gap_low < 0 < found.gap_high
    assert found.kind == "fine"
    assert "fits, as far as 20 images can tell (gap 0.100, 95% interval -" in found.headline
    assert "Hold out more images" in found.advice
    assert verdict(0.90, 0.80, count=1000).kind == "over-fitted"


def test_gap_interval_is_newcombes() -> None:
    # Newcombe 1998, table II, (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339.
    found = judge(
        {
            "train": answers("train", {"a": (35, 0.8), "b": (35, 0.8)}),
            "test": answers("test", {"a": (40, 0.6), "b": (40, 0.6)}),
        },
        [],
        "test",
        {},
    )
    assert (found.gap_low, found.gap_high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_guessing_is_called_so_however_well_the_training_images_are_known() -> None:
    for train in (0.52, 0.99):
        found = verdict(train, 0.51)
        assert found.kind == "guessing"
        assert found.headline.endswith("no better than guessing (always answering cats gives 0.500)")
    assert "check whether the labels are right" in verdict(0.99, 0.51).advice
    assert verdict(0.99, 0.56).kind == "over-fitted"


def test_few_images_that_guessing_explains_accuse_no_label() -> None:
    for held, kind in ((0.6, "unproven"), (0.5, "guessing")):
        found = verdict(0.99, held, count=20)
        assert found.kind == kind
        assert "labels" not in found.advice
        assert "Hold out more images: 20 images" in found.advice


@pytest.mark.parametrize(
    ("held", "words", "advice"),
    [
        ((2, 2, 0), "4 images can't tell it from guessing (always answering a gives 0.500)",
         "Hold out images of c too: validation has none. Hold out more images"),
        ((1, 0, 0), "all of these images are of a, which says nothing of others",
         "Hold out images of b and 1 more too: validation has none. Hold out more images"),
        ((80, 0, 0), "all of these images are of a, which says nothing of others",
         "Hold out images of b and 1 more too: validation has none."),
    ],
)  # fmt: skip
def test_images_without_a_mistake_that_can_not_tell_are_not_called_guessing(
    held: tuple[int, ...], words: str, advice: str
) -> None:
    predictions = {
        "train": answers("train", dict.fromkeys("abc", (40, 1.0))),
        "validation": answers("validation", {name: (n, 1.0) for name, n in zip("abc", held, strict=True)}),
    }
    found = judge(predictions, flat(), "validation", {})
    assert found.kind == "unproven"
    assert found.headline.endswith(words)
    assert found.advice.startswith(advice)


def test_a_class_without_a_held_out_image_is_named() -> None:
    held = answers("validation", {"a": (50, 0.96), "b": (50, 1.0), "c": (0, 0.0)})
    train = answers("train", dict.fromkeys("abc", (100, 0.97)))
    found = judge({"train": train, "validation": held}, flat(), "validation", {})
    assert found.advice.endswith("Hold out images of c too: validation has none.")


def test_images_that_were_hardly_learnt_were_not_learnt_by_heart() -> None:
    for predictions in (both(0.56, 0.51), unequal(0.5, 0.9)):
        advice = judge(predictions, flat(), "validation", {}).advice
        assert "by heart" not in advice


def test_naming_the_majority_class_is_guessing_and_the_advice_is_weights() -> None:
    found = judge(unequal(1.0, 0.0), flat(), "validation", {"train": {"class_weights": "none"}})
    assert found.kind == "guessing"
    assert (
        "always answering common gives 0.950); rare is never recognised (recall 0.000 of 50" in found.headline
    )
    assert found.advice.startswith("The classes are unequal, and rare is too rare to count")
    assert "--set train.class_weights=balanced" in found.advice
    weighted = {"train": {"class_weights": "balanced"}}
    assert "class_weights" not in judge(unequal(1.0, 0.0), flat(), "validation", weighted).advice


def test_knowing_the_rare_class_is_no_guessing_though_the_constant_answer_is_as_often_right() -> None:
    found = judge(unequal(0.95, 0.9), flat(), "validation", {})
    assert found.kind == "fine"


def test_a_class_that_is_never_recognised_is_named_first() -> None:
    found = judge(ten(0.0), flat(), "validation", {})
    assert found.kind == "neglected"
    assert found.headline.endswith("last is never recognised (recall 0.000 of 20 images)")
    assert "Add images of last" in found.advice
    assert judge(ten(0.75), flat(), "validation", {}).kind == "fine"
    assert judge(ten(0.0, images=2), flat(), "validation", {}).kind != "neglected"  # two images may be chance


def test_one_epoch_is_too_early_to_say_and_names_a_class_that_is_never_recognised() -> None:
    found = verdict(0.95, 0.94, flat(epochs=1))
    assert found.kind == "early"
    assert found.headline.endswith("too early to say after 1 epoch")
    assert found.advice == "Train longer: --set train.epochs=10."
    assert "after 2 epochs" in verdict(0.95, 0.94, flat(epochs=2)).headline
    assert verdict(0.95, 0.94, flat(epochs=3)).kind == "fine"
    # A warm start from the weights of an earlier run.
    assert verdict(0.95, 0.94, flat(epochs=1), settings={"train": {"start_from": "latest"}}).kind == "fine"
    assert "Hold out more images: 20 images" in verdict(0.95, 0.94, flat(epochs=1), count=20).advice
    found = judge(ten(0.0), flat(epochs=1), "validation", {})
    assert found.headline.endswith("after 1 epoch; last is never recognised (recall 0.000 of 20 images)")


def test_copies_of_training_images_are_left_out_and_both_figures_are_told() -> None:
    predictions = {
        "train": answers("train", {"cats": (500, 1.0), "dogs": (500, 1.0)}),
        "validation": answers("validation", {"cats": (220, 200 / 220), "dogs": (80, 0.625)}),
    }
    found = judge(predictions, rising(), "validation", {}, copied(140))
    assert found.kind == "over-fitted"
    assert found.headline == (
        "validation accuracy 0.688 without 140 exact copies of training images (95% interval 0.612 to 0.754; "
        "0.833 with them), train 1.000: over-fitted (gap 0.312)"
    )
    assert found.advice.startswith("Remove the 140 copies from validation: dataset.json lists them")
    assert judge(predictions, flat(), "validation", {}, copied(300)).kind == "copied"
    assert "Remove" not in judge(predictions, flat(), "validation", {}, copied(2)).advice


def test_low_train_accuracy_is_under_trained() -> None:
    found = verdict(0.70, 0.69)
    assert found.kind == "under-trained"
    assert "the train accuracy is low" in found.headline


def test_a_run_that_has_hardly_begun_is_not_over_fitted() -> None:
    found = verdict(0.65, 0.55)
    assert found.kind == "under-trained"
    assert "gap" not in found.headline


def test_curve_that_still_rises_is_under_trained() -> None:
    found = verdict(0.82, 0.80, rising())
    assert found.kind == "under-trained"
    assert "still rising" in found.headline
    assert "train.epochs=20" in found.advice


def test_curve_that_has_levelled_off_is_not_rising() -> None:
    assert not is_rising(flat(), "validation")
    assert is_rising(rising(), "validation")
    assert not is_rising(rising(step=0.001), "validation")


def test_noise_is_rarely_taken_for_a_rise() -> None:
    rng = np.random.default_rng(0)
    noisy = [[row | {"validation/accuracy": 0.8 + rng.normal() * 0.01} for row in flat()] for _ in range(200)]
    assert sum(is_rising(history, "validation") for history in noisy) <= 14


def test_rise_of_a_schedule_that_has_run_out_is_over() -> None:
    annealed = [
        row | {"learning_rate": 0.0005 * (1 + math.cos(math.pi * row["epoch"] / 10))} for row in rising()
    ]
    assert not is_rising(annealed, "validation")
    assert verdict(0.82, 0.80, annealed).kind == "fine"


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [([0.8], False), ([0.7, 0.8], True), ([0.7, 0.8, 0.79], False), ([0.7, 0.71, 0.715], False), ([], False)],
)
def test_few_epochs_rise_if_the_last_is_clearly_the_best(accuracies: list[float], expected: bool) -> None:
    history = [{"epoch": n, "validation/accuracy": value} for n, value in enumerate(accuracies, start=1)]
    assert is_rising(history, "validation") is expected


def test_epochs_that_were_not_validated_are_passed_over() -> None:
    history = [
        row if row["epoch"] % 2 == 0 else {"epoch": row["epoch"], "train/loss": 0.1}
        for row in rising(epochs=20)
    ]
    assert is_rising(history, "validation")
    assert find_best_epoch(history, "validation", "accuracy") == 20


def test_best_epoch_is_the_first_of_equals() -> None:
    history = [
        {"epoch": epoch, "test/accuracy": accuracy, "test/loss": loss}
        for epoch, accuracy, loss in [(1, 0.7, 0.4), (2, 0.9, 0.3), (3, 0.9, 0.2), (4, None, float("nan"))]
    ]
    assert find_best_epoch(history, "test", "accuracy") == 2
    assert find_best_epoch(history, "test", "loss") == 3
    assert find_best_epoch([], "test", "loss") is None


def test_held_out_split_is_called_by_its_name() -> None:
    found = judge(both(0.957, 0.924, held_out="test"), [], "test", {})
    assert found.headline.startswith("test accuracy 0.924")
