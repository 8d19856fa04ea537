"""Store of the decoded images of one process, which caches its share of them.

Images are addressed by number. Cached images are read from the cache; the few others are decoded on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.cache import PixelCache, Pixels

Write = Callable[[int, Pixels], None]
"""Stores an image by its number and pixels, uint8 [height, width, channels]; must be thread-safe."""
Decode = Callable[[NDArray[np.int64], Write], None]
"""Decodes the images with these numbers."""
Follow = Callable[..., None]
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
        follow: Follow = lambda *passes: None,
    ) -> None:
        """Create a store for `count` images, of which none is cached yet; see `PixelCache`."""
        self.shape = (count, *shape)
        self._budget, self._folder, self._decode, self._follow = budget_bytes, folder, decode, follow
        self._caches: list[PixelCache] = []
        self._cache = np.full(count, -1, np.int16)
        """Index of the cache of each image, -1 if it is not cached."""
        self._row = np.zeros(count, np.int64)
        """Row of each image in its cache."""

    def cache(self, numbers: NDArray[np.int64]) -> None:
        """Decode and cache those images of `numbers`, int64 [n], that are not cached yet.

        Raises the errors of `PixelCache` and of the decoder.
        """
        missing = np.unique(numbers[self._cache[numbers] < 0])
        if not len(missing):
            return
        cache = PixelCache(len(missing), self.shape[1:], self._budget, self._folder)
        self._row[missing] = np.arange(len(missing))
        try:
            self._decode(missing, lambda number, pixels: cache.write(int(self._row[number]), pixels))
        except BaseException:
            cache.close()
            raise
        self._caches.append(cache)
        self._cache[missing] = len(self._caches) - 1

    def prefetch(self, *passes: NDArray[np.int64]) -> None:
        """Prefetch the images that are read next, int64 [n] per pass, unless they are cached."""
        self._follow(*(numbers[self._cache[numbers] < 0] for numbers in passes))

    def gather(self, numbers: NDArray[np.integer]) -> Pixels:
        """Return copies of the images of `numbers`, integers [n], as uint8 [n, height, width, channels]."""
        places = self._cache[numbers]
        if len(self._caches) == 1 and (places == 0).all():
            return self._caches[0].take(self._row[numbers])
        taken = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for index, cache in enumerate(self._caches):
            taken[places == index] = cache.take(self._row[numbers[places == index]])
        elsewhere = numbers[places < 0]
        decoded: dict[int, Pixels] = {}
        if len(elsewhere):
            self._decode(np.unique(elsewhere), decoded.__setitem__)
            taken[places < 0] = [decoded[int(number)] for number in elsewhere]
        return taken

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
