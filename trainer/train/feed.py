"""Blocks of consecutive batches, prepared in the background.

In: a split's pixels and labels, a range of steps. Out: `Block`s in order, and how long the
reader waited for them. A block holds whole global batches, of which each replica takes its share.
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

from trainer.data.batches import Plan, steps_per_epoch
from trainer.data.dataset import Split
from trainer.draws import coins
from trainer.exits import UsageError

_PLACE_BYTES = 12
"""Of an image that lives on the device: its row, its label, and its place in the batch."""
_BLOCK_BYTES = 64 * 1024 * 1024
_READY_BLOCKS = 2
_NO_MORE = 0


@dataclass(frozen=True)
class Block:
    """Consecutive batches of one size."""

    first_step: int
    images: np.ndarray[Any, Any]
    """uint8 [steps, rows, height, width, channels]; of resident ones their places, int32 [steps, rows]."""
    labels: np.ndarray[Any, Any]
    """int32 [steps, rows], or [steps, rows, labels] where an image may have several."""
    places: np.ndarray[Any, Any]
    """int32 [steps, rows]: which rows of the global batch these are, from 0, in order."""
    global_rows: int
    """How many rows the global batch has."""
    is_mirrored: np.ndarray[Any, Any] | None = None
    """bool [steps, rows]: which images flip: alternating mirrors; None if it is not asked for."""

    @property
    def steps(self) -> int:
        """How many batches it holds."""
        return int(self.labels.shape[0])


class Feed:
    """Reads ahead of training; batches depend on (seed, step) only.

    `block_steps` may be changed while a block is worked on: it says how many batches the next blocks
    hold, at most, and never what is in them. Where every process changes it alike, their blocks are alike.
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
        """`together`: see `Plan`; this is process `index` of `hosts`, and gets its share.

        `resident`: the `own` images are where they are needed, and blocks hold their places among them.
        `borders`: before which steps a block has to end. `alternating`: mirror each image in every second
        epoch, a random half of them in the first; so two epochs in a row show both sides of all images.
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
        self._plan = Plan(self.count, self.global_batch_size, together, split.shards)
        self._images = self._plan.lanes_of_images(split.numbers)
        if hosts > self._plan.lane_count:
            raise UsageError(
                f"So few images can't be shared by so many processes: at most {self._plan.lane_count}. "
                f"Received: {self.count} images to train on, {hosts} processes"
            )
        self.own = np.flatnonzero(self._images % hosts == index)
        """The rows of the split that this process takes its share of the batches from."""
        if hosts > 1 and split.shards is None:
            split.pixels.hold(self.own)
        self._epoch = -1
        self._order = self._owners = np.array([], np.int64)

    def blocks(self, first_step: int, end_step: int) -> Generator[Block, None, None]:
        """Yield the batches of steps `first_step` up to, not including, `end_step`."""
        ready: queue.Queue[Block | BaseException | None] = queue.Queue()
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

    def _drain(self, ready: queue.Queue[Block | BaseException | None]) -> Iterator[Block]:
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
        ready: queue.Queue[Block | BaseException | None],
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
        except BaseException as error:  # the reader raises it where it can be handled
            ready.put(error)

    def _block(self, step: int, end_step: int) -> Block:
        """Return the batches from `step` on, as many as have the same shape on every process."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._begin(epoch, position)
        end_step = min([end_step, *(border for border in self._borders if border > step)])
        most = min(self._most_steps(), end_step - step, self.steps_per_epoch - position)
        start = position * self.global_batch_size
        owners = self._owners[start : start + most * self.global_batch_size]
        # How many rows of each batch each process has, [steps, hosts].
        batches = np.arange(len(owners)) // self.global_batch_size
        counts = np.bincount(batches * self.hosts + owners, minlength=(batches[-1] + 1) * self.hosts)
        shares = counts.reshape(-1, self.hosts)
        differs = np.flatnonzero((shares != shares[0]).any(axis=1))
        steps = int(differs[0]) if len(differs) else len(shares)
        # Those of the first `steps` batches; a short last batch has another share than whole ones.
        places = np.flatnonzero(owners[: steps * self.global_batch_size] == self.index)
        share, rows = int(shares[0, self.index]), self._order[start + places]
        images = self._places(rows) if self._resident else self.split.pixels.take(rows)
        return Block(
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
        """Look up the order of `epoch`, and say what will be taken from step `position` of it on."""
        self._epoch = epoch
        self._order, lanes = self._plan.order(self.seed, epoch, self._images)
        self._owners = lanes % self.hosts
        if self.split.shards is not None:
            following, lanes = self._plan.order(self.seed, epoch + 1, self._images)
            start = position * self.global_batch_size
            own = self._order[start:][self._owners[start:] == self.index]
            self.split.pixels.follow(own, following[lanes % self.hosts == self.index])

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        return np.searchsorted(self.own, rows).astype(np.int32)

    def _most_steps(self) -> int:
        row_bytes = _PLACE_BYTES if self._resident else int(np.prod(self.split.pixels.shape[1:]))
        bytes_per_step = self.global_batch_size * row_bytes
        return max(1, _BLOCK_BYTES // bytes_per_step)
