"""The decoded images of one process, where each has its share.

In: images by their numbers, a cache that holds some, and a way to decode any. Out: any of them: those that
are held from the cache, the few others decoded when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.cache import PixelCache, Pixels

Write = Callable[[int, Pixels], None]
"""Takes an image's number and its pixels, uint8 [height, width, channels]; several threads may call it."""
Decode = Callable[[NDArray[np.int64], Write], None]
"""Decodes images of these numbers."""
Follow = Callable[..., None]
"""Hears the numbers of the images that will be decoded next, int64 [n], in one pass after the other."""


class Rows(Protocol):
    """Model inputs, one row per image: pixels or cached features."""

    shape: tuple[int, ...]
    """[images, ...]."""

    def hold(self, indices: NDArray[np.integer]) -> None:
        """Keep the rows at `indices`, integers [n], where they are quickly taken."""

    def follow(self, *passes: NDArray[np.integer]) -> None:
        """Prepare for the rows at these indices, integers [n], in order; in one pass after the other."""

    def take(self, indices: NDArray[np.integer]) -> NDArray[Any]:
        """Return copies of the rows at `indices`, integers [n]."""


class Holding:
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
        """Hold nothing yet of `count` images; see `PixelCache` for the others."""
        self.shape = (count, *shape)
        self._budget, self._folder, self._decode, self._follow = budget_bytes, folder, decode, follow
        self._caches: list[PixelCache] = []
        self._cache = np.full(count, -1, np.int16)
        """Which cache each image is in, -1 if none."""
        self._row = np.zeros(count, np.int64)
        """Where in it."""

    def hold(self, numbers: NDArray[np.int64]) -> None:
        """Decode those of `numbers`, int64 [n], that aren't held, and hold them too.

        Raises what `PixelCache` and the decoding raise.
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

    def follow(self, *passes: NDArray[np.int64]) -> None:
        """Hear which images will be taken next, int64 [n] each: those that aren't held are made ready."""
        self._follow(*(numbers[self._cache[numbers] < 0] for numbers in passes))

    def take(self, numbers: NDArray[np.integer]) -> Pixels:
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
        """Give the memory or the disk space back; nothing can be taken after this."""
        for cache in self._caches:
            cache.close()


class View:
    """Some of the images, in an order of their own."""

    def __init__(self, images: Holding, numbers: NDArray[np.int64]) -> None:
        """See the images of `numbers`, int64 [n], as 0 to n - 1."""
        self._images, self._numbers = images, numbers
        self.shape: tuple[int, ...] = (len(numbers), *images.shape[1:])

    def hold(self, indices: NDArray[np.integer]) -> None:
        """Keep the images at `indices`, integers [n], where they are quickly taken."""
        self._images.hold(self._numbers[indices])

    def follow(self, *passes: NDArray[np.integer]) -> None:
        """Hear which images will be taken next, integers [n], in order; in one pass after the other."""
        self._images.follow(*(self._numbers[indices] for indices in passes))

    def take(self, indices: NDArray[np.integer]) -> Pixels:
        """Return copies of the images at `indices`, integers [n], as uint8 [n, height, width, channels]."""
        return self._images.take(self._numbers[indices])
