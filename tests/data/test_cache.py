"""Cache of decoded images: exact pixels from memory or disk, and no files left behind."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.small_disk import small_disk

from trainer.data.image_store import PixelCache, Pixels
from trainer.errors import TemporaryError, UsageError

SIZE = 16
SHAPE = (SIZE, SIZE, 3)
IMAGE_BYTES = SIZE * SIZE * 3


def images(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def filled(pixels: Pixels, budget_bytes: int, folder: Path) -> PixelCache:
    cache = PixelCache(len(pixels), SHAPE, budget_bytes, folder)
    for index, image in enumerate(pixels):
        cache.write(index, image)
    return cache


@pytest.mark.parametrize(("budget", "in_memory"), [(50 * IMAGE_BYTES, True), (50 * IMAGE_BYTES - 1, False)])
def test_images_are_read_in_any_order(tmp_path: Path, budget: int, in_memory: bool) -> None:
    pixels = images(50)
    cache = filled(pixels, budget, tmp_path / "pixels")
    assert cache.in_memory == in_memory
    assert cache.shape == pixels.shape
    order = np.array([49, 0, 7, 7, 13])
    copies = cache.take(order)
    np.testing.assert_array_equal(copies, pixels[order])
    copies[:] = 0
    np.testing.assert_array_equal(cache.take(order), pixels[order])
    assert cache.take(np.array([], np.int64)).shape == (0, SIZE, SIZE, 3)
    with pytest.raises(IndexError):
        cache.take(np.array([50]))
    cache.close()


def test_cache_file_is_unlinked_from_the_start(tmp_path: Path) -> None:
    cache = filled(images(10), 0, tmp_path)
    assert not cache.in_memory
    assert list(tmp_path.iterdir()) == []
    cache.close()
    cache.close()


def test_cache_of_no_images_needs_no_file(tmp_path: Path) -> None:
    assert PixelCache(0, SHAPE, 0, tmp_path).take(np.array([], np.int64)).shape == (0, SIZE, SIZE, 3)


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return sum(int(size) for size in re.findall(r"Rss(?:Anon|File|Shmem):\s+(\d+) kB", status)) * 1024


def test_resident_memory_stays_flat_when_the_file_is_written_and_read(tmp_path: Path) -> None:
    count, size = 400, 256
    cache = PixelCache(count, (size, size, 3), 1 << 20, tmp_path)
    image = np.full((size, size, 3), 7, np.uint8)
    cache.write(0, image)
    before = resident_bytes()
    for index in range(count):
        cache.write(index, image)
    for start in range(0, count, 20):
        assert cache.take(np.arange(start, start + 20)).min() == 7
    assert cache.shape[0] * image.nbytes > 70 << 20
    assert resident_bytes() - before < 20 << 20


def test_several_threads_may_write_and_read_at_once(tmp_path: Path) -> None:
    pixels = images(200)
    cache = PixelCache(200, SHAPE, 0, tmp_path)

    def write_then_read(index: int) -> bool:
        cache.write(index, pixels[index])
        return bool((cache.take(np.array([index])) == pixels[index]).all())

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(write_then_read, range(200)))


def test_too_small_disk_is_a_temporary_error_before_decoding(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "size=64k") as folder:
        with pytest.raises(TemporaryError, match="too little space"):
            PixelCache(1000, SHAPE, 0, folder)
        assert list(folder.iterdir()) == []
    with pytest.raises(TemporaryError, match="too little space"):
        PixelCache(1 << 40, (2048, 2048, 3), 0, tmp_path)


def test_folder_that_cannot_be_created_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        PixelCache(10, SHAPE, 0, tmp_path / "file" / "pixels")
