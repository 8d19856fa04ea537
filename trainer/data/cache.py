"""Cache of decoded images, in memory or on local disk.

Each image is written once and can be read any number of times, in any order. Up to a budget the pixels are in
memory. Above it they are in a memory-mapped file, whose pages are released after each read. The file has no
name, so the disk space is freed when the process ends, even if it crashes.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from contextlib import suppress
from pathlib import Path

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
        rest = memoryview(np.asarray(pixels, np.uint8).tobytes())
        offset = index * self._row_bytes
        with translate_errors(self._folder):
            # Not through the map: a disk error would kill the process with SIGBUS instead of raising.
            while rest:
                written = os.pwrite(self._file, rest, offset)
                rest, offset = rest[written:], offset + written

    def take(self, indices: NDArray[np.integer]) -> Pixels:
        """Return copies of the images at `indices`, integers [n], as uint8 [n, height, width, channels]."""
        taken: Pixels = np.take(self._pixels, indices, axis=0)
        if self._map is not None:
            # The pages stay in the page cache, where the kernel can evict them, but no longer count towards
            # this process.
            self._map.madvise(mmap.MADV_DONTNEED)
        return taken

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
            f"The disk has no room for the decoded images: {total_bytes >> 20} MiB are needed. Free some "
            "space, or use a smaller data.image_size or a larger data.cache_mib.",
            received=f"{folder} with {free_bytes >> 20} MiB free",
        )
