"""`BatchPrefetcher`: the batches of every step for any block size, and its errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.small_training import Pixels, dark_and_light

from trainer.augment.random import coins
from trainer.data.dataset import Dataset
from trainer.data.sampler import EpochSampler
from trainer.training.prefetch import BatchPrefetcher


def batch_of(seed: int, step: int, count: int, batch: int) -> np.ndarray:
    """Return the image indices of a step, computed without `BatchPrefetcher`."""
    epoch, position = divmod(step, -(-count // batch))
    plan = EpochSampler(count, batch)
    order, _ = plan.order(seed, epoch, plan.lanes_of_images(np.arange(count)))
    return order[position * batch :][:batch]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


def test_blocks_of_any_size_contain_the_batches_of_their_steps(dataset: Dataset) -> None:
    prefetcher = BatchPrefetcher(dataset.train, 8, 5)
    for block_steps in (1, 4, 100):
        prefetcher.block_steps = block_steps
        blocks = list(prefetcher.blocks(2, 15))
        assert [block.first_step for block in blocks] == list(
            np.cumsum([2, *[block.steps for block in blocks[:-1]]])
        )
        labels = [row for block in blocks for row in block.labels]
        expected = [dataset.train.labels[batch_of(5, step, 44, 8)] for step in range(2, 15)]
        assert len(labels) == len(expected)
        for one, two in zip(labels, expected, strict=True):
            np.testing.assert_array_equal(one, two)
    assert prefetcher.waited_seconds > 0


def test_error_of_the_prefetch_thread_is_raised_in_the_reader(dataset: Dataset) -> None:
    class Broken(Pixels):
        def gather(self, indices: np.ndarray) -> np.ndarray:
            raise OSError("the disk went away")

    broken = replace(dataset.train, pixels=Broken(np.zeros((44, 16, 16, 3), np.uint8)))
    with pytest.raises(OSError, match="went away"):
        list(BatchPrefetcher(broken, 8, 0).blocks(0, 3))


@pytest.mark.parametrize("hosts", [1, 3])
def test_alternating_flip_shows_both_sides_of_every_image_in_two_epochs(dataset: Dataset, hosts: int) -> None:
    # Each pixel is the index of its image.
    pixels = np.arange(44, dtype=np.uint8)[:, None, None, None] + np.zeros((44, 2, 2, 3), np.uint8)
    split = replace(dataset.train, pixels=Pixels(pixels))
    mirrored = np.zeros((3, 44), bool)
    for index in range(hosts):
        for block in BatchPrefetcher(
            split, 8, 5, process_index=index, process_count=hosts, has_alternating_flip=True
        ).blocks(0, 18):
            images = block.images[..., 0, 0, 0]
            assert block.is_mirrored is not None
            assert block.is_mirrored.shape == images.shape
            mirrored[block.first_step // 6, images] = block.is_mirrored
    assert 11 < mirrored[0].sum() < 33
    np.testing.assert_array_equal(mirrored[1], ~mirrored[0])
    np.testing.assert_array_equal(mirrored[2], mirrored[0])
    np.testing.assert_array_equal(mirrored[0], coins(np.arange(44), 5))
    assert next(BatchPrefetcher(split, 8, 5).blocks(0, 1)).is_mirrored is None


def test_coins_are_fair_and_independent_for_every_seed() -> None:
    tosses = np.stack([coins(np.arange(10_000), seed) for seed in (0, 1, 2**31 - 1)]).astype(float)
    np.testing.assert_allclose(tosses.mean(axis=1), 0.5, atol=0.02)
    np.testing.assert_allclose(np.corrcoef(tosses), np.eye(3), atol=0.04)
    np.testing.assert_allclose(np.mean(tosses[:, 1:] != tosses[:, :-1], axis=1), 0.5, atol=0.02)


@pytest.mark.parametrize("hosts", [2, 3, 4])
@pytest.mark.parametrize("together", [1, 2])
def test_shares_of_all_processes_form_the_batches_of_one_process(
    dataset: Dataset, hosts: int, together: int
) -> None:
    whole = BatchPrefetcher(dataset.train, 9, 5, together)
    feeds = [BatchPrefetcher(dataset.train, 9, 5, together, index, hosts) for index in range(hosts)]
    for prefetcher in (whole, *feeds):
        prefetcher.block_steps = 3
    shares = [list(prefetcher.blocks(1, 12)) for prefetcher in feeds]
    assert len({tuple((block.first_step, block.steps) for block in blocks) for blocks in shares}) == 1
    expected = {
        block.first_step + index: (block.images[index], block.labels[index])
        for block in whole.blocks(1, 12)
        for index in range(block.steps)
    }
    for blocks in zip(*shares, strict=True):
        for index in range(blocks[0].steps):
            places = np.concatenate([block.positions[index] for block in blocks])
            images, labels = expected.pop(blocks[0].first_step + index)
            assert sorted(places) == list(range(len(labels))) == list(range(blocks[0].global_rows))
            np.testing.assert_array_equal(
                np.concatenate([block.labels[index] for block in blocks]), labels[places]
            )
            np.testing.assert_array_equal(
                np.concatenate([block.images[index] for block in blocks]), images[places]
            )
            # Neighbours that may be mixed are on the same host.
            assert together == 1 or all((block.positions[index][::2] % 2 == 0).all() for block in blocks)
    assert not expected
