"""Store of the decoded images of one process, which caches its share of them in memory or on local disk.

Images are addressed by number. Cached images are read from the cache; the few others are decoded on demand.
Each image is written to the cache once and can be read any number of times, in any order. Up to a budget the
pixels are in memory. Above it they are in a memory-mapped file, whose pages are released after each read. The
file has no name, so the disk space is freed when the process ends, even if it crashes.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.errors import TemporaryError
from trainer.storage import prepare_folder, translate_errors

Pixels = NDArray[np.uint8]


class PixelCache:
    """Images of one shape: uint8 [count, height, width, channels]. All methods are thread-safe."""

    def __init__(self, count: int, shape: tuple[int, int, int], budget_bytes: int, folder: Path) -> None:
        """Allocate space for `count` images of `shape`, in a file in `folder` if above `budget_bytes`.

        Raises TemporaryError if the disk has too little space, UsageError if `folder` is not writable.
        """
        self.shape = (count, *shape)
        self._row_bytes = math.prod(shape)
        self._file: int | None = None
        self._map: mmap.mmap | None = None
        self._folder = folder
        total_bytes = count * self._row_bytes
        if total_bytes <= budget_bytes or not total_bytes:
            self._pixels: Pixels = np.zeros(self.shape, np.uint8)
            return
        self._file = _reserved_file(folder, total_bytes)
        with translate_errors(folder):
            self._map = mmap.mmap(self._file, total_bytes, prot=mmap.PROT_READ)
        self._pixels = np.frombuffer(self._map, np.uint8).reshape(self.shape)

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are in memory rather than in a file."""
        return self._file is None

    def write(self, index: int, pixels: Pixels) -> None:
        """Store image `index`, uint8 [height, width, channels]. Raises TemporaryError if the disk fails."""
        if self._file is None:
            self._pixels[index] = pixels
            return
        remaining = memoryview(np.asarray(pixels, np.uint8).tobytes())
        offset = index * self._row_bytes
        with translate_errors(self._folder):
            # Not through the map: a disk error would kill the process with SIGBUS instead of raising.
            while remaining:
                written = os.pwrite(self._file, remaining, offset)
                remaining, offset = remaining[written:], offset + written

    def take(self, indices: NDArray[np.integer]) -> Pixels:
        """Return copies of the images at `indices`, integers [n], as uint8 [n, height, width, channels]."""
        copies: Pixels = np.take(self._pixels, indices, axis=0)
        if self._map is not None:
            # The pages stay in the page cache, where the kernel can evict them, but no longer count towards
            # this process.
            self._map.madvise(mmap.MADV_DONTNEED)
        return copies

    def close(self) -> None:
        """Free the memory or the disk space; the cache is empty afterwards."""
        self._pixels = np.zeros((0, *self.shape[1:]), np.uint8)
        if self._map is not None and self._file is not None:
            os.close(self._file)
            with suppress(BufferError):
                # Another thread is still copying; the map is freed when the copy is complete.
                self._map.close()
        self._map = self._file = None


def _reserved_file(folder: Path, total_bytes: int) -> int:
    """Return the descriptor of a new, unlinked file with `total_bytes` of allocated disk space."""
    prepare_folder(folder)
    with translate_errors(folder):
        _require_space(folder, total_bytes)
        file, path = tempfile.mkstemp(prefix="pixels-", dir=folder)
        try:
            os.unlink(path)
            # With a sparse file, a full disk would only be detected in the middle of training.
            os.posix_fallocate(file, 0, total_bytes)
        except BaseException:
            os.close(file)
            raise
    return file


def _require_space(folder: Path, total_bytes: int) -> None:
    """Check the free space first: a failing allocation would fill up the disk for other processes."""
    disk = os.statvfs(folder)
    free_bytes = disk.f_bavail * disk.f_frsize
    if total_bytes > free_bytes:
        raise TemporaryError(
            f"The disk has too little space for the decoded images: {total_bytes >> 20} MiB are required.",
            "Free some space, or use a smaller data.image_size or a larger data.cache_mib.",
            received=f"{folder} with {free_bytes >> 20} MiB free",
        )


Write = Callable[[int, Pixels], None]
"""Stores an image by its number and pixels, uint8 [height, width, channels]; must be thread-safe."""
Decode = Callable[[NDArray[np.int64], Write], None]
"""Decodes the images with these numbers."""
Prefetch = Callable[..., None]
"""Receives the numbers of the images that are decoded next, one int64 [n] array per pass, to prefetch
them."""


class Rows(Protocol):
    """Model inputs, one row per image: pixels or cached features."""

    shape: tuple[int, ...]
    """[images, ...]."""

    def cache(self, indices: NDArray[np.integer]) -> None:
        """Cache the rows at `indices`, integers [n]."""

    def prefetch(self, *passes: NDArray[np.integer]) -> None:
        """Prefetch the rows at these indices, integers [n], in order; one array per pass."""

    def gather(self, indices: NDArray[np.integer]) -> NDArray[Any]:
        """Return copies of the rows at `indices`, integers [n]."""


class ImageStore:
    """Images of one shape, by number: uint8 [count, height, width, channels]."""

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        budget_bytes: int,
        folder: Path,
        decode: Decode,
        prefetch: Prefetch = lambda *passes: None,
    ) -> None:
        """Create a store for `count` images, of which none is cached yet; see `PixelCache`."""
        self.shape = (count, *shape)
        self._budget, self._folder, self._decode, self._prefetch = budget_bytes, folder, decode, prefetch
        self._caches: list[PixelCache] = []
        self._cache = np.full(count, -1, np.int16)
        """Index of the cache of each image, -1 if it is not cached."""
        self._row = np.zeros(count, np.int64)
        """Row of each image in its cache."""

    def cache(self, numbers: NDArray[np.int64], decode: Decode | None = None) -> None:
        """Decode and cache those images of `numbers`, int64 [n], that are not cached yet.

        `decode` replaces the decoder of the store in this call. Raises the errors of `PixelCache` and of the
        decoder.
        """
        missing = np.unique(numbers[self._cache[numbers] < 0])
        if not len(missing):
            return
        cache = PixelCache(len(missing), self.shape[1:], self._budget, self._folder)
        self._row[missing] = np.arange(len(missing))
        decode = decode or self._decode
        try:
            decode(missing, lambda number, pixels: cache.write(int(self._row[number]), pixels))
        except BaseException:
            cache.close()
            raise
        self._caches.append(cache)
        self._cache[missing] = len(self._caches) - 1

    def prefetch(self, *passes: NDArray[np.int64]) -> None:
        """Prefetch the images that are read next, int64 [n] per pass, unless they are cached."""
        self._prefetch(*(numbers[self._cache[numbers] < 0] for numbers in passes))

    def gather(self, numbers: NDArray[np.integer]) -> Pixels:
        """Return copies of the images of `numbers`, integers [n], as uint8 [n, height, width, channels]."""
        caches = self._cache[numbers]
        if len(self._caches) == 1 and (caches == 0).all():
            return self._caches[0].take(self._row[numbers])
        images = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for index, cache in enumerate(self._caches):
            images[caches == index] = cache.take(self._row[numbers[caches == index]])
        uncached = numbers[caches < 0]
        decoded: dict[int, Pixels] = {}
        if len(uncached):
            self._decode(np.unique(uncached), decoded.__setitem__)
            images[caches < 0] = [decoded[int(number)] for number in uncached]
        return images

    def close(self) -> None:
        """Free the memory or the disk space; the store is unusable afterwards."""
        for cache in self._caches:
            cache.close()


class Subset:
    """A subset of the images, in its own order."""

    def __init__(self, images: ImageStore, numbers: NDArray[np.int64]) -> None:
        """Map the indices 0 to n - 1 to the images of `numbers`, int64 [n]."""
        self._images, self._numbers = images, numbers
        self.shape: tuple[int, ...] = (len(numbers), *images.shape[1:])

    def cache(self, indices: NDArray[np.integer]) -> None:
        """Cache the images at `indices`, integers [n]."""
        self._images.cache(self._numbers[indices])

    def prefetch(self, *passes: NDArray[np.integer]) -> None:
        """Prefetch the images at these indices, integers [n], in order; one array per pass."""
        self._images.prefetch(*(self._numbers[indices] for indices in passes))

    def gather(self, indices: NDArray[np.integer]) -> Pixels:
        """Return copies of the images at `indices`, integers [n], as uint8 [n, height, width, channels]."""
        return self._images.gather(self._numbers[indices])
