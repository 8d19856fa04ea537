"""Batches: a pure function of seed, epoch and position."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.batches import batch_indices, epoch_order, steps_per_epoch


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31 - 1), st.integers(0, 300), st.integers(1, 200), st.integers(1, 64))
def test_every_epoch_holds_every_image_once(seed: int, epoch: int, count: int, batch: int) -> None:
    steps = steps_per_epoch(count, batch)
    batches = [batch_indices(seed, epoch * steps + step, count, batch) for step in range(steps)]
    assert sorted(np.concatenate(batches)) == list(range(count))
    assert all(len(each) == batch for each in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch


def test_order_differs_between_epochs_and_seeds_and_is_the_same_everywhere() -> None:
    assert not np.array_equal(epoch_order(0, 0, 100), epoch_order(0, 1, 100))
    assert not np.array_equal(epoch_order(0, 0, 100), epoch_order(1, 0, 100))
    # The literal numbers: a change of library or of key would change every run.
    assert epoch_order(0, 0, 5).tolist() == [1, 3, 4, 0, 2]
    assert epoch_order(7, 3, 8).tolist() == epoch_order(7, 3, 8).tolist()


def test_every_place_of_the_order_is_equally_likely() -> None:
    first = np.array([epoch_order(0, epoch, 10)[0] for epoch in range(3000)])
    counts = np.bincount(first, minlength=10)
    assert counts.min() > 230
    assert counts.max() < 370
