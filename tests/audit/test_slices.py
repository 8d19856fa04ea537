"""Accuracy on slices of evaluated images."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.drawn_items import draw_scene, encoded, measured

from trainer.audit.slices import compute_slices, slice_properties

COUNT = 800
RNG = np.random.default_rng(0)
BRIGHTNESS = RNG.uniform(0, 1, COUNT)
CAMERA = np.array(["", "a", "b"])[RNG.integers(0, 3, COUNT)]


def test_worse_slice_comes_first_with_its_figures() -> None:
    is_right = np.where(BRIGHTNESS < 0.25, RNG.random(COUNT) < 0.5, RNG.random(COUNT) < 0.95)
    slices = compute_slices(is_right, {"camera": CAMERA, "brightness": BRIGHTNESS})
    worst = slices[0]
    assert (worst.name, worst.is_worse, len(worst.rows)) == ("brightness", True, COUNT // 4)
    assert worst.right == is_right[worst.rows].sum()
    assert worst.accuracy == worst.right / len(worst.rows)
    assert worst.interval[0] < worst.accuracy < worst.interval[1]
    others = np.delete(is_right, worst.rows)
    assert worst.difference == pytest.approx(worst.accuracy - others.mean())
    assert [part.is_worse for part in slices] == [True] + [False] * (len(slices) - 1)
    assert worst.sentence.startswith("brightness 0.0")


def test_texts_make_one_slice_each_and_missing_ones_none() -> None:
    slices = compute_slices(np.arange(COUNT) % 2 == 0, {"camera": CAMERA})
    assert {part.value: len(part.rows) for part in slices} == {name: (name == CAMERA).sum() for name in "ab"}


def test_missing_numbers_belong_to_no_slice() -> None:
    values = np.where(np.arange(COUNT) < 100, np.nan, BRIGHTNESS)
    groups = np.where(np.arange(COUNT) < 100, -1, np.arange(COUNT) % 2)
    for name, missing in (("brightness", values), ("noise group", groups)):
        rows = np.concatenate([part.rows for part in compute_slices(BRIGHTNESS > 0.5, {name: missing})])
        assert sorted(rows) == list(range(100, COUNT))


def test_chance_makes_a_slice_differ_in_at_most_5_percent_of_data_sets() -> None:
    false_findings = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        values = {name: rng.random(200) for name in "abcd"}
        slices = compute_slices(rng.random(200) < 0.8, values)
        assert len(slices) == 16
        false_findings += any(part.p_value < 0.05 for part in slices)
    assert false_findings <= 5  # 2.5 and two standard errors


def test_small_slices_and_whole_sets_are_left_out() -> None:
    values = np.array(["rare"] * 19 + ["usual"] * (COUNT - 19))
    slices = compute_slices(
        BRIGHTNESS > 0.5, {"folder": values, "constant": np.ones(COUNT), "text": np.array(["x"] * COUNT)}
    )
    assert [part.value for part in slices] == ["usual"]


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_images_have_no_slices(count: int) -> None:
    assert compute_slices(np.ones(count, bool), {"brightness": BRIGHTNESS[:count]}) == []


def test_accuracies_of_0_and_1_have_intervals() -> None:
    slices = compute_slices(np.quantile(BRIGHTNESS, 0.25) > BRIGHTNESS, {"brightness": BRIGHTNESS})
    assert slices[-1].accuracy == pytest.approx(1, abs=0.01)
    assert all(0 <= part.interval[0] < part.interval[1] <= 1 for part in slices)


def test_measures_are_properties_of_slices() -> None:
    measures = measured([encoded(draw_scene(seed, 60 + seed, 50)) if seed else None for seed in range(60)])
    properties = slice_properties(measures, np.zeros(60, np.int64))
    slices = compute_slices(np.arange(60) % 3 > 0, properties)
    assert {part.name for part in slices} >= {"format"}
    assert all(0 not in part.rows for part in slices if part.name != "noise group")
