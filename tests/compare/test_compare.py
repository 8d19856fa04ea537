"""Comparison of runs: significance tests, verdicts and differences between specs."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.label_answers import answers
from helpers.report_inputs import make_predictions, run_of

from trainer.compare.comparison import compare_all, compare_runs
from trainer.compare.page import comparison_page, draw_overlaid
from trainer.compare.pair import format_p
from trainer.compare.runs import Run, all_differences, read_metrics
from trainer.evaluate.metrics import Predictions, compute_metrics
from trainer.evaluate.significance import (
    bootstrap,
    exact_mcnemar,
    holm,
    mean_interval,
    paired_accuracies,
    unpaired_accuracies,
)
from trainer.report.figures import to_svg

CLASSES = ("cats", "dogs", "birds")


def binomial_tail(smaller: int, count: int) -> float:
    """Return twice the probability of at most `smaller` heads in `count` tosses, at most 1."""
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(smaller + 1)) / 2**count)


@pytest.mark.parametrize(("first", "second"), [(38, 50), (0, 6), (1, 12), (5, 5), (120, 80), (0, 0)])
def test_mcnemar_test_is_a_binomial_test_of_discordant_images(first: int, second: int) -> None:
    expected = binomial_tail(min(first, second), first + second)
    assert exact_mcnemar(first, second) == pytest.approx(expected, abs=1e-12)
    assert exact_mcnemar(second, first) == pytest.approx(expected, abs=1e-12)


def answers_of(random: np.random.Generator, accuracy: float, gain: float, count: int) -> tuple[int, int]:
    """Return how many images only the first, and only the second, of two models classifies correctly.

    The second model is more accurate by `gain`; they also differ on a tenth of the images.
    """
    kinds = random.multinomial(count, [0.05, 0.05 + gain, accuracy - 0.05, 0.95 - accuracy - gain])
    return int(kinds[0]), int(kinds[1])


def test_interval_has_its_nominal_coverage_and_false_positives_are_rare() -> None:
    random = np.random.default_rng(1)
    for gain in (0.0, 0.02, 0.05):
        tests = [paired_accuracies(*answers_of(random, 0.8, gain, 1000), 1000) for _ in range(1000)]
        coverage = np.mean([test.low <= gain <= test.high for test in tests])
        assert 0.93 <= coverage <= 0.97
        if gain == 0:
            assert np.mean([not test.is_chance for test in tests]) <= 0.05
        assert np.mean([test.difference for test in tests]) == pytest.approx(gain, abs=0.003)


def test_counts_are_tested_as_two_samples() -> None:
    random = np.random.default_rng(2)
    found = []
    for _ in range(400):
        first, second = random.binomial(1000, 0.72, 2)
        test = unpaired_accuracies((int(first), 1000), (int(second), 1000))
        found.append((test.low <= 0 <= test.high, test.is_chance))
    assert 0.93 <= np.mean([each[0] for each in found]) <= 0.975
    assert np.mean([each[1] for each in found]) >= 0.95
    assert not unpaired_accuracies((700, 1000), (800, 1000)).is_chance


def test_bootstrap_agrees_with_the_metrics_and_detects_a_difference() -> None:
    first = make_predictions("validation", CLASSES, 150, 1.0, seed=1)
    second = replace(make_predictions("validation", CLASSES, 150, 2.2, seed=2), names=first.names)
    measured = [compute_metrics(each) for each in (first, second)]
    found = bootstrap(first, second)
    assert set(found) == {"macro_recall", "macro_f1", "log_loss", "brier"}
    for name, test in found.items():
        assert test.difference == pytest.approx(measured[1][name] - measured[0][name], abs=1e-6), name
        assert test.low < test.difference < test.high
        assert not test.is_chance
    same = bootstrap(first, first)
    assert all(test.is_chance and test.low == test.high == 0 for test in same.values())
    two = make_predictions("validation", CLASSES[:2], 50, 1.0)
    other = make_predictions("validation", CLASSES[:2], 50, 1.0, seed=3)
    expected = compute_metrics(other)["brier"] - compute_metrics(two)["brier"]
    assert bootstrap(two, other)["brier"].difference == pytest.approx(expected, abs=1e-6)


def test_class_without_images_is_excluded_from_means() -> None:
    whole = make_predictions("validation", CLASSES, 60, 1.0)
    kept = np.flatnonzero(whole.labels != 2)
    first = replace(whole, labels=whole.labels[kept], probabilities=whole.probabilities[kept],
                    names=tuple(whole.names[i] for i in kept))  # fmt: skip
    second = replace(first, probabilities=np.roll(first.probabilities, 1, axis=0))
    expected = compute_metrics(second)["macro_f1"] - compute_metrics(first)["macro_f1"]
    assert bootstrap(first, second)["macro_f1"].difference == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("classes", "of_each", "most"),
    [
        (300, 2, 100e6),  # a confusion matrix per draw would need 720 MB
        (2, 10_000, 400e6),  # all draws at once would need 1 GB
    ],
)
def test_bootstrap_of_many_classes_or_images_uses_little_memory(
    classes: int, of_each: int, most: float
) -> None:
    names = tuple(map(str, range(classes)))
    answers = [make_predictions("validation", names, of_each, 1.0, seed=seed) for seed in (1, 2)]
    tracemalloc.start()
    bootstrap(*answers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most


def test_interval_of_a_mean_is_students() -> None:
    mean, deviation, half = mean_interval([0.70, 0.72, 0.74, 0.71, 0.73])
    assert (mean, round(deviation, 6)) == (pytest.approx(0.72), 0.015811)
    assert half == pytest.approx(2.776445 * 0.015811 / math.sqrt(5), rel=1e-4)
    assert math.isnan(mean_interval([0.7])[1])


def test_verdict_of_paired_runs() -> None:
    first = make_predictions("validation", CLASSES, 200, 1.0, seed=1)
    again = compare_runs(run_of(first, "a"), run_of(first, "b"))
    assert again.verdict == "No difference: both are right and wrong on the same 600 images."
    other = make_predictions("validation", CLASSES, 200, 1.0, seed=2)
    same = compare_runs(run_of(first, "a"), run_of(other, "b"))
    assert same.verdict.startswith("No significant difference: ")
    assert f"{same.only_first} to {same.only_second} (exact McNemar p = " in same.verdict
    better = make_predictions("validation", CLASSES, 200, 3.0, seed=3)
    for pair in (compare_runs(run_of(first, "a"), run_of(better, "b")),
                 compare_runs(run_of(better, "b"), run_of(first, "a"))):  # fmt: skip
        assert pair.verdict.startswith("b is better by 0.")
        assert "exact McNemar p < 0.0001" in pair.verdict
    assert len(pair.disagreements) == pair.only_first + pair.only_second


def unequal(common: float, rare: float) -> Run:
    """Return a run on 1,140 and 60 images of two classes with these recalls."""
    labels = np.repeat([0, 1], [1140, 60])
    right = np.r_[np.arange(1140) < round(1140 * common), np.arange(60) < round(60 * rare)]
    probabilities = np.where(np.eye(2)[np.where(right, labels, 1 - labels)] > 0, 0.9, 0.1)
    answers = Predictions(
        "validation", tuple(map(str, range(1200))), labels.astype(np.int32), probabilities, ("common", "rare")
    )
    return run_of(answers, f"{common:g} and {rare:g}")


def test_verdict_considers_mean_recall_of_unequal_classes() -> None:
    constant, weighted = unequal(1.0, 0.0), unequal(0.85, 0.9)
    for pair in (compare_runs(constant, weighted), compare_runs(weighted, constant)):
        assert pair.is_contested
        assert pair.verdict.startswith("1 and 0 is more accurate by 0.098 (95% interval 0.07")
        assert "the mean recall of 0.85 and 0.9 is higher by 0.375 (95% interval 0.3" in pair.verdict
        assert pair.verdict.endswith("neither is better in both.")
    counts = compare_runs(replace(constant, predictions=None), replace(weighted, predictions=None))
    assert counts.verdict.endswith("by 0.375 (95% interval 0.331 to 0.419): neither is better in both.")
    alike = [replace(unequal(*recalls), predictions=None) for recalls in ((1.0, 0.0), (0.955, 0.8))]
    found = compare_runs(*alike)
    assert found.verdict.startswith("No significant difference: Fisher's exact p = 0.")
    assert (
        "but the classes are unequal, and the mean recall of 0.955 and 0.8 is higher by 0.3" in found.verdict
    )
    assert not compare_runs(replace(alike[1], name="again"), alike[1]).is_recall_other
    same = compare_runs(unequal(0.95, 0.4), unequal(0.94, 0.6))
    assert same.verdict.startswith("No significant difference: ")
    assert "; but the classes are unequal, and the mean recall of 0.94" in same.verdict
    assert compare_runs(unequal(0.9, 0.8), unequal(0.95, 0.9)).verdict.startswith("0.95 and 0.9 is better by")


def test_several_comparisons_are_adjusted_to_one_level() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 p, 2 p, at least the previous
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    random = np.random.default_rng(5)
    false = {"together": 0, "each": 0}
    for _ in range(1000):
        first, *others = random.random((10, 500)) < 0.8
        found = [exact_mcnemar(int(np.sum(first & ~each)), int(np.sum(each & ~first))) for each in others]
        false["together"] += min(holm(found)) < 0.05
        false["each"] += min(found) < 0.05
    assert false["together"] <= 50 < 150 < false["each"]
    counts = (400, 406, 406, 430)
    runs = [
        run_of(of_rights(np.arange(500) < count), f"{count}-{number}") for number, count in enumerate(counts)
    ]
    small, _, large = compare_all(runs)
    assert small.verdict == (
        "No significant difference: 6 images differ, 0 to 6 (exact McNemar p = 0.0312, 0.0625 adjusted for 3 "
        "comparisons)."
    )
    assert large.verdict.startswith("430-3 is better by 0.060")
    assert compare_runs(*runs[:2]).verdict.startswith("406-1 is better by 0.012")  # no correction
    assert "adjusted for" not in compare_all(runs[:2])[0].verdict


def of_rights(right: Any) -> Predictions:
    """Return predictions for images of two classes that are correct where `right` is true."""
    labels = np.arange(len(right)) % 2
    answers = np.where(right, labels, 1 - labels)
    return Predictions(
        "validation", tuple(map(str, range(len(right)))), labels.astype(np.int32),
        np.where(np.eye(2)[answers] > 0, 0.9, 0.1).astype(np.float32), ("cats", "dogs"),
    )  # fmt: skip


def test_runs_of_other_data_or_with_counts_only_are_not_paired() -> None:
    first = make_predictions("validation", CLASSES, 200, 1.0)
    pair = compare_runs(run_of(first, "a"), run_of(first, "b", digest="sha256:2"))
    assert "unpaired, because the data differ" in pair.verdict
    assert not pair.others
    easy = run_of(make_predictions("validation", CLASSES, 200, 3.0), "easy", digest="sha256:2")
    text = compare_runs(run_of(first, "a"), easy).verdict
    assert text.startswith("easy scored higher by 0.")  # the data may be the cause, not the model
    assert ", which easier images may explain: Fisher's exact p < 0.0001, unpaired, because the data" in text
    few, many = (
        read_metrics(json.dumps({"test/accuracy": share, "test/count": count}), "x", name)
        for name, share, count in (("few", 0.712, 1000), ("many", 0.8, 50_000))
    )
    assert "many scored higher by 0.088" in compare_runs(few, many).verdict  # the images differ too
    papers = [
        read_metrics(json.dumps({"validation/accuracy": share, "validation/count": 1000}), "x", name)
        for name, share in (("one", 0.712), ("two", 0.725))
    ]
    pair = compare_runs(*papers)
    assert pair.verdict.startswith("No significant difference: Fisher's exact p = 0.5")
    assert "from the counts alone" in pair.verdict


def test_formatted_p_value_shows_the_side_of_a_level() -> None:
    values = (0.5, 0.0501, 0.0498, 0.00123, 0.00001)
    assert [format_p(value) for value in values] == ["0.50", "0.0501", "0.0498", "0.00123", "< 0.0001"]


def test_tiny_differences_are_not_shown_as_zero() -> None:
    papers = [
        read_metrics(
            json.dumps({"test/accuracy": right / 1e8, "test/count": 1e8, "test/correct": right}), "x", name
        )
        for name, right in (("one", 50_000_000), ("two", 50_030_000))
    ]
    assert "two is better by 0.0003 (95% interval 0.00016 to 0.00044)" in compare_runs(*papers).verdict
    assert bootstrap(*(make_predictions("validation", CLASSES, 200, scale) for scale in (0.5, 4.0)))[
        "log_loss"
    ].p_value == pytest.approx(2 / 1001)


def test_urls_are_shown_without_secrets() -> None:
    specs = [{"data": {"source": f"https://ana:S3CRET@a.example/{name}.zip?token=QWERTY"}} for name in "ab"]
    first, second = (Run(name, name, {}, "test", spec=spec) for name, spec in zip("ab", specs, strict=True))
    text = str(list(all_differences(first, second)))
    assert "a.example/a.zip" in text
    assert "S3CRET" not in text
    assert "QWERTY" not in text
    assert not list(all_differences(first, Run("c", "c", {}, "test")))  # a run without a spec


def test_run_names_are_drawn_literally() -> None:
    history = [{"epoch": 1, "test/accuracy": 0.5, "train/accuracy": 0.5}]
    names = ("a$\\frac$<b>&", "_under")
    figure = draw_overlaid([Run(name, name, {}, "test", history=history) for name in names], "accuracy")
    assert [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()] == list(names)
    assert "<svg" in to_svg(figure, "a", "b")


def test_page_names_the_test_of_each_metric(tmp_path: Path) -> None:
    bootstrapped = "by a paired bootstrap with 1,000 resamples"
    exact = "by McNemar's exact test"
    several = [
        Run(name, name, {f"validation/{key}": value for key, value in compute_metrics(predictions).items()},
            "validation", predictions, dataset={"digest": "sha256:1"})
        for name, predictions in (("a", answers(1.5)), ("b", answers(4.0)))
    ]  # fmt: skip
    one = [run_of(make_predictions("validation", CLASSES, 200, scale), str(scale)) for scale in (1.0, 3.0)]
    for runs, methods in (
        (one, f"accuracy {exact}, which decides if the interval disagrees; the others {bootstrapped}"),
        (
            several,
            f"mean average precision {bootstrapped}; subset_accuracy {exact}, the others {bootstrapped}",
        ),
    ):
        page = comparison_page(runs, compare_all(runs), tmp_path)
        assert f"with 95% intervals: {methods}, not adjusted." in page
