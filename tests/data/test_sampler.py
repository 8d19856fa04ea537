"""Batch order: a pure function of seed, epoch and position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampler import EpochSampler, Shards, initial_hosts, steps_per_epoch


def order(seed: int, epoch: int, sampler: EpochSampler) -> np.ndarray:
    return sampler.order(seed, epoch, sampler.lanes_of_images(np.arange(sampler.count)))[0]


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**31 - 1), st.integers(0, 300), st.integers(1, 900), st.integers(1, 64), st.booleans())
def test_every_epoch_has_each_image_once_in_its_lane(
    seed: int, epoch: int, count: int, batch: int, are_pairs: bool
) -> None:
    numbers = np.sort(np.random.default_rng(seed).choice(3 * count, count, replace=False))
    sampler = EpochSampler(count, batch, 1 + are_pairs)
    images = sampler.lanes_of_images(numbers)
    order, lanes = sampler.order(seed, epoch, images)
    assert sorted(order) == list(range(count))
    np.testing.assert_array_equal(images[order], lanes)
    assert steps_per_epoch(count, batch) == len(np.unique(np.arange(count) // batch))
    rows = np.arange(count) % batch
    pairs = np.flatnonzero((rows[1:] % 2 == 1) & are_pairs)
    np.testing.assert_array_equal(lanes[pairs], lanes[pairs + 1])


def test_only_surplus_images_move_to_another_lane() -> None:
    numbers = np.flatnonzero(np.random.default_rng(0).random(2500) < 0.8)  # the rest is held out
    sampler = EpochSampler(len(numbers), 20)
    images = sampler.lanes_of_images(numbers)
    assert np.ptp(np.bincount(images)) <= 1
    assert np.mean(images != numbers % sampler.lane_count) < 0.05
    np.testing.assert_array_equal(EpochSampler(384, 8).lanes_of_images(np.arange(384)), np.arange(384) % 96)


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 6, 8, 12, 24])
@pytest.mark.parametrize("together", [1, 2])
def test_every_process_has_an_even_share_of_every_batch(hosts: int, together: int) -> None:
    sampler = EpochSampler(2400, 48, together)
    for epoch in range(3):
        _, lanes = sampler.order(0, epoch, sampler.lanes_of_images(np.arange(2400)))
        shares = [np.bincount(batch, minlength=hosts) for batch in (lanes % hosts).reshape(-1, 48)]
        assert {tuple(share) for share in shares} == {(48 // hosts,) * hosts}
    assert np.bincount(initial_hosts(np.arange(960), hosts)).tolist() == [960 // hosts] * hosts


def test_order_depends_only_on_seed_and_epoch() -> None:
    sampler = EpochSampler(100, 4)
    assert not np.array_equal(order(0, 0, sampler), order(0, 1, sampler))
    assert not np.array_equal(order(0, 0, sampler), order(1, 0, sampler))
    # Fixed values, because a different library or key would change every run.
    assert order(0, 0, sampler)[:6].tolist() == [42, 25, 56, 15, 70, 5]
    assert order(7, 3, EpochSampler(8, 4)).tolist() == order(7, 3, EpochSampler(8, 4)).tolist()


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (400, 4), (400, 400)])
def test_every_image_is_equally_likely_at_the_first_position(count: int, batch: int) -> None:
    first = np.array([order(0, epoch, EpochSampler(count, batch))[0] for epoch in range(300 * 10)])
    counts = np.bincount(first * 10 // count, minlength=10)
    assert counts.min() > 230
    assert counts.max() < 370


def shards_of(*sizes: int, together: int = 2) -> Shards:
    return Shards(np.cumsum([0, *sizes]), together)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("sizes", [(50, 50, 50, 50), (7, 300, 1, 92), (400,), (3, 2)])
def test_shards_are_read_window_by_window_and_each_image_once(sizes: tuple[int, ...], together: int) -> None:
    shards, count = shards_of(*sizes), sum(sizes)
    sampler = EpochSampler(count, 10, together, shards)
    images = sampler.lanes_of_images(np.arange(count))
    orders = [sampler.order(7, epoch, images)[0] for epoch in range(2)]
    for order in orders:
        assert sorted(order) == list(range(count))
        visited = np.searchsorted(shards.starts, order, side="right") - 1
        windows = [set(visited[first:end]) for first, end in windows_of(visited, sizes)]
        assert all(len(window) <= shards.per_window for window in windows)
        assert len({shard for window in windows for shard in window}) == sum(map(len, windows))
    assert count < 10 or list(orders[0]) != list(orders[1])
    assert list(sampler.order(7, 1, images)[0]) == list(orders[1])


def windows_of(visited: np.ndarray, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the ranges of `visited` that read the same shards; a range ends when these are used up."""
    bounds, used, start = [], set(), 0
    left = dict(enumerate(sizes))
    for position, shard in enumerate(visited):
        used.add(shard)
        left[shard] -= 1
        if all(left[shard] == 0 for shard in used) and (len(used) == 2 or position == len(visited) - 1):
            bounds.append((start, position + 1))
            start, used = position + 1, set()
    return bounds


def test_each_process_needs_its_share_of_the_shards_at_a_time() -> None:
    shards = shards_of(*[960] * 8, together=4)
    sampler = EpochSampler(960 * 8, 96, 1, shards)
    order, lanes = sampler.order(3, 0, sampler.lanes_of_images(np.arange(960 * 8)))
    visited = np.searchsorted(shards.starts, order, side="right") - 1
    for hosts in (2, 4):
        needed = [set(visited[: 960 * 4][lanes[: 960 * 4] % hosts == host]) for host in range(hosts)]
        assert [len(shards_of_host) for shards_of_host in needed] == [4 // hosts] * hosts
        assert len(set().union(*needed)) == 4
    # Every batch mixes all shards of a window, so that they are not read one after the other.
    assert all(len(set(visited[start : start + 96])) == 4 for start in range(0, 960 * 4, 96))
