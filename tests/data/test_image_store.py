"""The image store of one process: cached images, and other images decoded on demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.data.image_store import ImageStore, Subset, Write

SIZE = 8
SHAPE = (SIZE, SIZE, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, *SHAPE)).astype(np.uint8)


class Decoder:
    """Decoder that records the numbers of the images it decodes."""

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def __call__(self, numbers: np.ndarray, write: Write) -> None:
        for number in map(int, numbers):
            self.decoded.append(number)
            write(number, PIXELS[number])


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_cached_images_are_decoded_once_and_others_on_demand(tmp_path: Path, budget: int) -> None:
    decoder = Decoder()
    store = ImageStore(12, SHAPE, budget, tmp_path, decoder)
    store.cache(np.array([3, 1, 7]))
    assert sorted(decoder.decoded) == [1, 3, 7]
    np.testing.assert_array_equal(store.gather(np.array([7, 1, 7])), PIXELS[[7, 1, 7]])
    store.cache(np.array([7, 9]))
    assert sorted(decoder.decoded) == [1, 3, 7, 9]
    np.testing.assert_array_equal(store.gather(np.array([9, 3, 0, 5, 0])), PIXELS[[9, 3, 0, 5, 0]])
    assert sorted(decoder.decoded) == [0, 1, 3, 5, 7, 9]
    assert store.gather(np.array([], np.int64)).shape == (0, SIZE, SIZE, 3)
    store.close()


def test_subset_has_its_own_rows(tmp_path: Path) -> None:
    decoder = Decoder()
    subset = Subset(ImageStore(12, SHAPE, 1 << 20, tmp_path, decoder), np.array([8, 3, 5]))
    subset.cache(np.array([2]))
    assert decoder.decoded == [5]
    assert subset.shape == (3, SIZE, SIZE, 3)
    np.testing.assert_array_equal(subset.gather(np.array([2, 0])), PIXELS[[5, 8]])


def test_failed_decoding_leaves_no_cache(tmp_path: Path) -> None:
    def fail(numbers: np.ndarray, write: Write) -> None:
        raise OSError("the source went away")

    store = ImageStore(12, SHAPE, 0, tmp_path, fail)
    with pytest.raises(OSError, match="went away"):
        store.cache(np.array([1]))
    assert list(tmp_path.iterdir()) == []
