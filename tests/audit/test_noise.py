"""Groups of drawn images with planted noise."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.drawn_items import draw_scene, encoded, measured
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from trainer.audit.noise import compare_groups, find_noise_groups
from trainer.audit.residual import NOISE_NAMES

COUNT = 120
KINDS = np.arange(COUNT) % 3


def noisy(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.asarray(draw_scene(seed, 128, 128))
    if KINDS[seed] == 0:
        pixels = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    elif KINDS[seed] == 1:
        pixels = np.where(rng.random((128, 128, 1)) < 0.05, np.uint8(255), pixels)
    return encoded(Image.fromarray(pixels), **({"quality": 20} if KINDS[seed] == 2 else {"quality": 95}))


def test_three_kinds_of_noise_are_three_groups() -> None:
    groups = find_noise_groups(measured([noisy(seed) for seed in range(COUNT)]).noise)
    assert groups.is_distinct
    assert adjusted_rand_score(KINDS, groups.groups) > 0.95
    texts = {kind: groups.texts[groups.groups[kind]] for kind in range(3)}
    assert "isolated pixels" in texts[1]
    assert "JPEG blocks" in texts[2]
    assert not any(word in texts[0] for word in ("isolated", "blocks"))


def test_images_without_kinds_of_noise_are_one_group() -> None:
    groups = find_noise_groups(measured([encoded(draw_scene(seed, 128, 128)) for seed in range(COUNT)]).noise)
    assert not groups.is_distinct
    assert set(groups.groups) == {0}


def test_continuum_of_noise_is_one_group() -> None:
    position = np.random.default_rng(0).uniform(0.7, 3.7, 1000)
    noise = np.ones((1000, len(NOISE_NAMES)))
    # A parabola in the features, which takes several components.
    noise[:, NOISE_NAMES.index("sigma of luma at scale 1")] = np.exp(position) - 2
    noise[:, NOISE_NAMES.index("kurtosis of luma")] = np.exp(4 * (position - 2.2) ** 2)
    groups = find_noise_groups(noise)
    assert groups.components > 1
    assert not groups.is_distinct


def test_images_without_statistics_belong_to_no_group() -> None:
    images = [noisy(seed) if seed % 2 else None for seed in range(COUNT)]
    groups = find_noise_groups(measured(images).noise)
    assert (groups.groups[::2] == -1).all()
    assert (groups.groups[1::2] >= 0).all()


def test_groups_are_numbered_by_size() -> None:
    images = [noisy(seed) for seed in range(COUNT) if KINDS[seed] == 0 or seed < 60]
    counts = np.bincount(find_noise_groups(measured(images).noise).groups)
    assert counts.tolist() == sorted(counts, reverse=True)


@pytest.mark.parametrize("count", [0, 1, 3, 60])
def test_few_and_equal_images_are_one_group(count: int) -> None:
    groups = find_noise_groups(measured([encoded(draw_scene(0))] * count).noise)
    assert groups.groups.tolist() == [0] * count
    assert len(groups.texts) == min(count, 1)


def test_no_statistics_at_all_are_no_group() -> None:
    groups = find_noise_groups(np.full((80, len(NOISE_NAMES)), np.nan, np.float32))
    assert (groups.texts, set(groups.groups.tolist())) == ((), {-1})


def test_groups_are_compared_with_class_and_split() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 300)
    groups[:10] = -1
    dependent = np.where(rng.random(300) < 0.8, groups, rng.integers(0, 3, 300))
    split = np.array(["train", "validation"])[rng.integers(0, 2, 300)]
    constant = np.zeros(300, np.int64)
    by_class, by_split = compare_groups(groups, {"class": dependent, "split": split, "constant": constant})
    assert (by_class.name, by_split.name) == ("class", "split")
    assert by_class.p_value < 1e-6 < 0.05 < by_split.p_value
    assert by_class.cramers_v == pytest.approx(0.85, abs=0.1)


def test_p_values_of_independent_groups_are_uniform_also_in_small_tables() -> None:
    rng = np.random.default_rng(1)
    p_values = [
        compare_groups(rng.integers(0, 2, 12), {"class": rng.integers(0, 3, 12)})[0].p_value
        for _ in range(100)
    ]
    assert np.mean(np.array(p_values) < 0.1) <= 0.17  # 0.1 and two standard errors, discrete at most


def test_one_group_is_compared_with_nothing() -> None:
    assert compare_groups(np.zeros(50, np.int64), {"class": np.arange(50) % 2}) == []
    assert compare_groups(np.full(50, -1), {"class": np.arange(50) % 2}) == []
