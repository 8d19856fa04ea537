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

_PLACE_BYTES = 12
"""Bytes per image with a device cache: its row, its label and its position in the batch, int32 each."""
_BLOCK_BYTES = 64 * 1024 * 1024
_READY_BLOCKS = 2
_NO_MORE = 0


@dataclass(frozen=True)
class BatchBlock:
    """Consecutive batches of one size."""

    first_step: int
    images: np.ndarray[Any, Any]
    """uint8 [steps, rows, height, width, channels]; with a device cache indices into it, int32 [steps, rows].
    """
    labels: np.ndarray[Any, Any]
    """int32 [steps, rows], or [steps, rows, labels] with multiple labels per image."""
    places: np.ndarray[Any, Any]
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
        together: int = 1,
        index: int = 0,
        hosts: int = 1,
        resident: bool = False,
        borders: Sequence[int] = (),
        alternating: bool = False,
    ) -> None:
        """together: see `EpochSampler`. index, hosts: this is process `index` of `hosts`; it reads its share.

        resident: device memory holds the images of `own`, and blocks contain indices into them. borders:
        steps at which a block ends. alternating: mirror each image in every second epoch, a random half of
        them in the first. Raises UsageError if there are too few images for the number of processes.
        """
        self._resident, self._borders = resident, borders
        self.split = split
        self.count = len(split.labels)
        self.global_batch_size = min(global_batch_size, self.count)
        self.seed, self.index, self.hosts = seed, index, hosts
        self.steps_per_epoch = steps_per_epoch(self.count, self.global_batch_size)
        self.block_steps = 1
        self.waited_seconds = 0.0
        self._first_mirrored = coins(split.numbers, seed) if alternating else None
        self._plan = EpochSampler(self.count, self.global_batch_size, together, split.shards)
        self._images = self._plan.lanes_of_images(split.numbers)
        if hosts > self._plan.lane_count:
            raise UsageError(
                f"So few images can't be shared by so many processes: at most {self._plan.lane_count}.",
                received=f"{self.count} images to train on, {hosts} processes",
            )
        self.own = np.flatnonzero(self._images % hosts == index)
        """Rows of the split from which this process takes its share of the batches."""
        if hosts > 1 and split.shards is None:
            split.pixels.cache(self.own)
        self._epoch = -1
        self._order = self._owners = np.array([], np.int64)

    def blocks(self, first_step: int, end_step: int) -> Generator[BatchBlock, None, None]:
        """Yield blocks with the batches of steps `first_step` to `end_step`, exclusive."""
        ready: queue.Queue[BatchBlock | BaseException | None] = queue.Queue()
        asked: queue.Queue[int] = queue.Queue()
        for _ in range(_READY_BLOCKS):
            asked.put(self.block_steps)
        worker = threading.Thread(target=self._fill, args=(ready, asked, first_step, end_step), daemon=True)
        worker.start()
        try:
            for block in self._drain(ready):
                asked.put(self.block_steps)
                yield block
        finally:
            asked.put(_NO_MORE)
            worker.join()

    def _drain(self, ready: queue.Queue[BatchBlock | BaseException | None]) -> Iterator[BatchBlock]:
        while True:
            before = time.perf_counter()
            block = ready.get()
            self.waited_seconds += time.perf_counter() - before
            if block is None:
                return
            if isinstance(block, BaseException):
                raise block
            yield block

    def _fill(
        self,
        ready: queue.Queue[BatchBlock | BaseException | None],
        asked: queue.Queue[int],
        first_step: int,
        end_step: int,
    ) -> None:
        try:
            step = first_step
            while step < end_step and (steps := asked.get()) != _NO_MORE:
                block = self._block(step, min(step + steps, end_step))
                ready.put(block)
                step += block.steps
            ready.put(None)
        except BaseException as error:  # raised again in the thread of the reader
            ready.put(error)

    def _block(self, step: int, end_step: int) -> BatchBlock:
        """Return the batches from `step` on, up to the first one whose shape differs on any process."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._begin(epoch, position)
        end_step = min([end_step, *(border for border in self._borders if border > step)])
        most = min(self._most_steps(), end_step - step, self.steps_per_epoch - position)
        start = position * self.global_batch_size
        owners = self._owners[start : start + most * self.global_batch_size]
        # Rows of each batch per process, [steps, hosts].
        batches = np.arange(len(owners)) // self.global_batch_size
        counts = np.bincount(batches * self.hosts + owners, minlength=(batches[-1] + 1) * self.hosts)
        shares = counts.reshape(-1, self.hosts)
        differs = np.flatnonzero((shares != shares[0]).any(axis=1))
        steps = int(differs[0]) if len(differs) else len(shares)
        # Only the first `steps` batches: the shares of a short last batch differ from those of full ones.
        places = np.flatnonzero(owners[: steps * self.global_batch_size] == self.index)
        share, rows = int(shares[0, self.index]), self._order[start + places]
        images = self._places(rows) if self._resident else self.split.pixels.gather(rows)
        return BatchBlock(
            first_step=step,
            images=images.reshape(steps, share, *images.shape[1:]),
            labels=self.split.labels[rows].reshape(steps, share, *self.split.labels.shape[1:]),
            places=(places % self.global_batch_size).astype(np.int32).reshape(steps, share),
            global_rows=int(shares[0].sum()),
            is_mirrored=self._mirrored(rows, epoch, steps),
        )

    def _mirrored(self, rows: NDArray[np.int64], epoch: int, steps: int) -> NDArray[np.bool_] | None:
        if self._first_mirrored is None:
            return None
        return (self._first_mirrored[rows] ^ (epoch % 2 == 1)).reshape(steps, -1)

    def _begin(self, epoch: int, position: int) -> None:
        """Compute the order of `epoch` and prefetch the images needed from step `position` of it on."""
        self._epoch = epoch
        self._order, lanes = self._plan.order(self.seed, epoch, self._images)
        self._owners = lanes % self.hosts
        if self.split.shards is not None:
            following, lanes = self._plan.order(self.seed, epoch + 1, self._images)
            start = position * self.global_batch_size
            own = self._order[start:][self._owners[start:] == self.index]
            self.split.pixels.prefetch(own, following[lanes % self.hosts == self.index])

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        return np.searchsorted(self.own, rows).astype(np.int32)

    def _most_steps(self) -> int:
        row_bytes = _PLACE_BYTES if self._resident else int(np.prod(self.split.pixels.shape[1:]))
        bytes_per_step = self.global_batch_size * row_bytes
        return max(1, _BLOCK_BYTES // bytes_per_step)
