"""Background prefetch of consecutive batches, in blocks.

A `BatchPrefetcher` reads the pixels and labels of a split for a range of steps. It yields `BatchBlock`s
of whole global batches in order and measures how long the reader waits for them. Each replica takes its share
of every batch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.augment.random import coins
from trainer.data.dataset import Split
from trainer.data.sampler import EpochSampler, steps_per_epoch
from trainer.errors import UsageError

_INDEX_BYTES = 12
"""Bytes per image with a device cache: its row, its label and its position in the batch, int32 each."""
_BLOCK_BYTES = 64 * 1024 * 1024
_READY_BLOCKS = 2
_END = 0


@dataclass(frozen=True)
class BatchBlock:
    """Consecutive batches of one size."""

    first_step: int
    images: np.ndarray[Any, Any]
    """uint8 [steps, rows, height, width, channels]; with a device cache indices into it, int32 [steps, rows].
    """
    labels: np.ndarray[Any, Any]
    """int32 [steps, rows], or [steps, rows, labels] with multiple labels per image."""
    positions: np.ndarray[Any, Any]
    """Positions of the rows in the global batch, int32 [steps, rows], from 0, in ascending order."""
    global_rows: int
    """Number of rows of the global batch."""
    is_mirrored: np.ndarray[Any, Any] | None = None
    """bool [steps, rows]: which images are mirrored by alternating flips; None if the option is off."""

    @property
    def steps(self) -> int:
        """Number of batches."""
        return int(self.labels.shape[0])


class BatchPrefetcher:
    """Prefetches batches, which depend on (seed, step) only.

    `block_steps` may be changed while a block is processed. It limits the number of batches of the next
    blocks and never changes their content. If all processes set the same value, their blocks have the same
    sizes.
    """

    def __init__(
        self,
        split: Split,
        global_batch_size: int,
        seed: int,
        group_size: int = 1,
        process_index: int = 0,
        process_count: int = 1,
        has_device_cache: bool = False,
        boundaries: Sequence[int] = (),
        has_alternating_flip: bool = False,
    ) -> None:
        """group_size: see `EpochSampler`. process_index, process_count: determine the share to read.

        has_device_cache: device memory holds the images of `own`, and blocks contain indices into them.
        boundaries: steps at which a block ends. has_alternating_flip: mirror each image in every second
        epoch, a random half of them in the first. Raises UsageError if there are too few images for the
        number of processes.
        """
        self._has_device_cache, self._boundaries = has_device_cache, boundaries
        self.split = split
        self.count = len(split.labels)
        self.global_batch_size = min(global_batch_size, self.count)
        self.seed = seed
        self.process_index, self.process_count = process_index, process_count
        self.steps_per_epoch = steps_per_epoch(self.count, self.global_batch_size)
        self.block_steps = 1
        self.waited_seconds = 0.0
        self._first_mirrored = coins(split.numbers, seed) if has_alternating_flip else None
        self._sampler = EpochSampler(self.count, self.global_batch_size, group_size, split.shards)
        self._images = self._sampler.lanes_of_images(split.numbers)
        self._require_enough_images()
        self.own = np.flatnonzero(self._images % process_count == process_index)
        """Rows of the split from which this process takes its share of the batches."""
        if process_count > 1 and split.shards is None:
            split.pixels.cache(self.own)
        self._epoch = -1
        self._order = self._owners = np.array([], np.int64)

    def _require_enough_images(self) -> None:
        if self.process_count > self._sampler.lane_count:
            raise UsageError(
                f"{self.count} training images can be divided among at most {self._sampler.lane_count} "
                f"processes.",
                "Use fewer processes, or add images.",
                received=f"{self.process_count} processes",
            )

    def blocks(self, first_step: int, end_step: int) -> Generator[BatchBlock, None, None]:
        """Yield blocks with the batches of steps `first_step` to `end_step`, exclusive."""
        blocks: queue.Queue[BatchBlock | BaseException | None] = queue.Queue()
        requests: queue.Queue[int] = queue.Queue()
        for _ in range(_READY_BLOCKS):
            requests.put(self.block_steps)
        worker = threading.Thread(
            target=self._fill, args=(blocks, requests, first_step, end_step), daemon=True
        )
        worker.start()
        try:
            for block in self._drain(blocks):
                requests.put(self.block_steps)
                yield block
        finally:
            requests.put(_END)
            worker.join()

    def _drain(self, blocks: queue.Queue[BatchBlock | BaseException | None]) -> Iterator[BatchBlock]:
        while True:
            before = time.perf_counter()
            block = blocks.get()
            self.waited_seconds += time.perf_counter() - before
            if block is None:
                return
            if isinstance(block, BaseException):
                raise block
            yield block

    def _fill(
        self,
        blocks: queue.Queue[BatchBlock | BaseException | None],
        requests: queue.Queue[int],
        first_step: int,
        end_step: int,
    ) -> None:
        try:
            step = first_step
            while step < end_step and (steps := requests.get()) != _END:
                block = self._build_block(step, min(step + steps, end_step))
                blocks.put(block)
                step += block.steps
            blocks.put(None)
        except BaseException as error:  # raised again in the thread of the reader
            blocks.put(error)

    def _build_block(self, step: int, end_step: int) -> BatchBlock:
        """Return the batches from `step` on, up to the first one whose shape differs on any process."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._begin_epoch(epoch, position)
        end_step = min([end_step, *(boundary for boundary in self._boundaries if boundary > step)])
        max_steps = min(self._max_steps(), end_step - step, self.steps_per_epoch - position)
        start = position * self.global_batch_size
        owners = self._owners[start : start + max_steps * self.global_batch_size]
        # Rows of each batch per process, [steps, processes].
        batches = np.arange(len(owners)) // self.global_batch_size
        processes = self.process_count
        counts = np.bincount(batches * processes + owners, minlength=(batches[-1] + 1) * processes)
        shares = counts.reshape(-1, processes)
        differs = np.flatnonzero((shares != shares[0]).any(axis=1))
        steps = int(differs[0]) if len(differs) else len(shares)
        # Only the first `steps` batches: the shares of a short last batch differ from those of full ones.
        offsets = np.flatnonzero(owners[: steps * self.global_batch_size] == self.process_index)
        share, rows = int(shares[0, self.process_index]), self._order[start + offsets]
        images = self._cache_indices(rows) if self._has_device_cache else self.split.pixels.gather(rows)
        return BatchBlock(
            first_step=step,
            images=images.reshape(steps, share, *images.shape[1:]),
            labels=self.split.labels[rows].reshape(steps, share, *self.split.labels.shape[1:]),
            positions=(offsets % self.global_batch_size).astype(np.int32).reshape(steps, share),
            global_rows=int(shares[0].sum()),
            is_mirrored=self._is_mirrored(rows, epoch, steps),
        )

    def _is_mirrored(self, rows: NDArray[np.int64], epoch: int, steps: int) -> NDArray[np.bool_] | None:
        if self._first_mirrored is None:
            return None
        return (self._first_mirrored[rows] ^ (epoch % 2 == 1)).reshape(steps, -1)

    def _begin_epoch(self, epoch: int, position: int) -> None:
        """Compute the order of `epoch` and prefetch the images needed from step `position` of it on."""
        self._epoch = epoch
        self._order, lanes = self._sampler.order(self.seed, epoch, self._images)
        self._owners = lanes % self.process_count
        if self.split.shards is not None:
            next_order, lanes = self._sampler.order(self.seed, epoch + 1, self._images)
            start = position * self.global_batch_size
            own = self._order[start:][self._owners[start:] == self.process_index]
            self.split.pixels.prefetch(own, next_order[lanes % self.process_count == self.process_index])

    def _cache_indices(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        return np.searchsorted(self.own, rows).astype(np.int32)

    def _max_steps(self) -> int:
        row_bytes = _INDEX_BYTES if self._has_device_cache else int(np.prod(self.split.pixels.shape[1:]))
        bytes_per_step = self.global_batch_size * row_bytes
        return max(1, _BLOCK_BYTES // bytes_per_step)
