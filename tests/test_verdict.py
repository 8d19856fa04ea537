"""The verdict follows from the numbers, and allows for what chance does to them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trainer.metrics import wilson_interval
from trainer.report.history import find_best_epoch, is_rising
from trainer.report.verdict import Verdict, judge

Rows = list[dict[str, Any]]


def split_metrics(
    split: str, correct: int, count: int, classes: dict[str, tuple[int, float]]
) -> dict[str, float]:
    """Metrics of a split, `classes` being name to (images, recall)."""
    low, high = wilson_interval(correct, count)
    found: dict[str, float] = {
        f"{split}/accuracy": correct / count,
        f"{split}/accuracy_low": low,
        f"{split}/accuracy_high": high,
        f"{split}/count": count,
        f"{split}/correct": correct,
    }
    for name, (images, recall) in classes.items():
        found |= {f"{split}/support/{name}": images, f"{split}/recall/{name}": recall}
    return found


def metrics(train: float, held: float, count: int = 1000, held_out: str = "validation") -> dict[str, float]:
    """Metrics of two balanced classes, the cats being the weaker."""
    of_train = {"cats": (1000, train), "dogs": (1000, train)}
    of_held = {
        "cats": (count // 2, held - 0.01 if held < 1 else 1.0),
        "dogs": (count // 2, min(1.0, held + 0.01)),
    }
    return {
        **split_metrics("train", round(2000 * train), 2000, of_train),
        **split_metrics(held_out, round(count * held), count, of_held),
    }


def flat(accuracy: float = 0.92, epochs: int = 20) -> Rows:
    """A history that has levelled off."""
    noise = np.random.default_rng(0).normal(size=epochs) * 0.004
    return [
        {
            "epoch": epoch,
            "learning_rate": 0.001,
            "train/loss": 0.2,
            "validation/loss": 0.3,
            "validation/accuracy": accuracy + float(noise[epoch - 1]),
        }
        for epoch in range(1, epochs + 1)
    ]


def rising(step: float = 0.02, epochs: int = 10) -> Rows:
    """A history that goes up by `step` an epoch to its end."""
    return [row | {"validation/accuracy": 0.6 + step * row["epoch"]} for row in flat(epochs=epochs)]


def verdict(
    train: float,
    held: float,
    history: Rows | None = None,
    count: int = 1000,
    settings: dict[str, Any] | None = None,
) -> Verdict:
    rows = flat() if history is None else history
    return judge(metrics(train, held, count), rows, "validation", settings or {})


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
            **split_metrics("train", 56, 70, {"a": (35, 0.8), "b": (35, 0.8)}),
            **split_metrics("test", 48, 80, {"a": (40, 0.6), "b": (40, 0.6)}),
        },
        [],
        "test",
        {},
    )
    assert (found.gap_low, found.gap_high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_guessing_is_under_trained() -> None:
    found = verdict(0.52, 0.51)
    assert found.kind == "under-trained"
    assert "always answering cats gives 0.500" in found.headline


def test_naming_the_majority_class_is_not_learning() -> None:
    rare = {"common": (950, 1.0), "rare": (50, 0.0)}
    both = {
        **split_metrics("train", 1900, 2000, {"common": (1900, 1.0), "rare": (100, 0.0)}),
        **split_metrics("validation", 950, 1000, rare),
    }
    found = judge(both, flat(), "validation", {})
    assert found.kind == "under-trained"
    assert "always answering common gives 0.950" in found.headline
    assert found.weakest_class == "rare"


def test_low_train_accuracy_is_under_trained() -> None:
    found = verdict(0.70, 0.69)
    assert found.kind == "under-trained"
    assert "the train accuracy is low" in found.headline


def test_a_run_that_has_hardly_begun_is_not_over_fitted() -> None:
    found = verdict(0.65, 0.55)
    assert found.kind == "under-trained"
    assert "gap" not in found.headline


def test_over_fitting_at_the_level_of_guessing_is_over_fitting() -> None:
    assert verdict(0.99, 0.51).kind == "over-fitted"


def test_curve_that_still_rises_is_under_trained() -> None:
    found = verdict(0.82, 0.80, rising())
    assert found.kind == "under-trained"
    assert "still rising" in found.headline
    assert "train.epochs=20" in found.advice


def test_time_budget_that_ran_out_is_named() -> None:
    found = verdict(0.82, 0.80, rising(), settings={"train": {"epochs": 50, "time_budget_seconds": 60.0}})
    assert "train.time_budget_seconds" in found.advice


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


def test_advice_against_over_fitting_names_what_is_not_used_yet() -> None:
    off = {"flip": "none", "crop": None, "noise": 0.0}
    on = {**off, "flip": "horizontal"}
    assert "augment.crop" in verdict(0.99, 0.72, settings={"augment": off}).advice
    assert "model.dropout" in verdict(0.99, 0.72, settings={"augment": on}).advice
    dropout = {"augment": on, "model": {"dropout": 0.3}}
    assert "optimizer.weight_decay" in verdict(0.99, 0.72, settings=dropout).advice
    decay = {**dropout, "optimizer": {"weight_decay": 0.05}}
    assert "Add training images" in verdict(0.99, 0.72, settings=decay).advice


def test_advice_names_the_recipe_that_is_the_cure() -> None:
    found = verdict(0.99, 0.72, settings={"recipe": "cats-vs-dogs"})
    assert found.advice.startswith("Try the recipe cats-vs-dogs-augmented")


def test_advice_says_when_learning_turned_into_memorising() -> None:
    history = [row | {"validation/loss": 0.3 + 0.02 * abs(row["epoch"] - 6)} for row in flat()]
    assert "The validation loss was lowest in epoch 6 of 20" in verdict(0.99, 0.72, history).advice


def test_falling_loss_of_an_under_trained_run_asks_for_more_epochs() -> None:
    falling = [row | {"train/loss": 1 / row["epoch"]} for row in flat(0.69, epochs=5)]
    assert "train.epochs=10" in verdict(0.70, 0.69, falling).advice
    assert "optimizer.learning_rate" in verdict(0.70, 0.69, flat(0.69)).advice


def test_run_without_a_mistake_has_no_weakest_class() -> None:
    found = verdict(1.0, 1.0)
    assert found.kind == "fine"
    assert found.weakest_class is None
    assert found.advice.startswith("No mistake on 1,000 images.")


def test_few_held_out_images_are_said_to_be_few() -> None:
    assert verdict(0.95, 1.0, count=4).advice.startswith("Hold out more images: 4 images")


def test_held_out_split_is_called_by_its_name() -> None:
    found = judge(metrics(0.957, 0.924, held_out="test"), [], "test", {})
    assert found.headline.startswith("test accuracy 0.924")
