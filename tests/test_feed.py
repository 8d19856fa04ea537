"""The feed: the batches of every step, whatever the size of the blocks, and its errors."""

from __future__ import annotations

import numpy as np
import pytest
from small_training import Pixels, dark_and_light

from trainer.data.batches import batch_indices
from trainer.data.dataset import Dataset, Split
from trainer.train.feed import Feed


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


def test_blocks_hold_the_batches_of_their_steps_whatever_their_size(dataset: Dataset) -> None:
    feed = Feed(dataset.train, 8, 5)
    for block_steps in (1, 4, 100):
        feed.block_steps = block_steps
        blocks = list(feed.blocks(2, 15))
        assert [block.first_step for block in blocks] == list(
            np.cumsum([2, *[block.steps for block in blocks[:-1]]])
        )
        labels = [row for block in blocks for row in block.labels]
        expected = [dataset.train.labels[batch_indices(5, step, 44, 8)] for step in range(2, 15)]
        assert len(labels) == len(expected)
        for one, two in zip(labels, expected, strict=True):
            np.testing.assert_array_equal(one, two)
    assert feed.waited_seconds > 0


def test_an_error_in_the_feed_reaches_the_loop(dataset: Dataset) -> None:
    class Broken(Pixels):
        def take(self, indices: np.ndarray) -> np.ndarray:
            raise OSError("the disk went away")

    broken = Split(
        "train", dataset.train.items, dataset.train.labels, Broken(np.zeros((44, 16, 16, 3), np.uint8))
    )
    with pytest.raises(OSError, match="went away"):
        list(Feed(broken, 8, 0).blocks(0, 3))
