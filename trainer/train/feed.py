"""Blocks of consecutive batches, prepared in the background.

In: a split's pixels and labels, a range of steps. Out: `Block`s in order, and how long the
reader waited for them. A block holds whole global batches, of which each replica takes its share.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data.batches import epoch_order, steps_per_epoch
from trainer.data.dataset import Split

_BLOCK_BYTES = 64 * 1024 * 1024
_READY_BLOCKS = 2


@dataclass(frozen=True)
class Block:
    """Consecutive batches of one size."""

    first_step: int
    images: np.ndarray[Any, Any]
    """uint8 [steps, rows, size, size, 3]."""
    labels: np.ndarray[Any, Any]
    """int32 [steps, rows]."""

    @property
    def steps(self) -> int:
        """How many batches it holds."""
        return int(self.labels.shape[0])


class Feed:
    """Reads ahead of training; batches depend on (seed, step) only.

    `block_steps` may be changed at any time: it says how many batches the next blocks
    hold, at most, and never what is in them.
    """

    def __init__(self, split: Split, global_batch_size: int, seed: int) -> None:
        self.split = split
        self.global_batch_size = min(global_batch_size, len(split.labels))
        self.seed = seed
        self.count = len(split.labels)
        self.steps_per_epoch = steps_per_epoch(self.count, self.global_batch_size)
        self.block_steps = 1
        self.waited_seconds = 0.0
        self._order: tuple[int, np.ndarray[Any, Any]] = (-1, np.array([], np.int64))

    def blocks(self, first_step: int, end_step: int) -> Iterator[Block]:
        """Yield the batches of steps `first_step` up to, not including, `end_step`."""
        ready: queue.Queue[Block | BaseException | None] = queue.Queue(_READY_BLOCKS)
        stop = threading.Event()
        worker = threading.Thread(target=self._fill, args=(ready, stop, first_step, end_step), daemon=True)
        worker.start()
        try:
            yield from self._drain(ready)
        finally:
            stop.set()
            while worker.is_alive():  # a full queue would hold the worker
                _discard(ready)
                worker.join(0.01)

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
        stop: threading.Event,
        first_step: int,
        end_step: int,
    ) -> None:
        try:
            step = first_step
            while step < end_step and not stop.is_set():
                block = self._block(step, end_step)
                ready.put(block)
                step += block.steps
            ready.put(None)
        except BaseException as error:  # the reader raises it where it can be handled
            ready.put(error)

    def _block(self, step: int, end_step: int) -> Block:
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self.seed, epoch, self.count))
        steps = min(self._most_steps(), end_step - step, self.steps_per_epoch - position)
        start = position * self.global_batch_size
        rows = self._order[1][start : start + steps * self.global_batch_size]
        whole = len(rows) // self.global_batch_size
        # The short batch that ends an epoch can't share an array with whole ones.
        steps, rows = (whole, rows[: whole * self.global_batch_size]) if whole else (1, rows)
        images = self.split.pixels.take(rows)
        return Block(
            step,
            images.reshape(steps, -1, *images.shape[1:]),
            self.split.labels[rows].reshape(steps, -1),
        )

    def _most_steps(self) -> int:
        bytes_per_step = self.global_batch_size * int(np.prod(self.split.pixels.shape[1:]))
        return max(1, min(self.block_steps, _BLOCK_BYTES // bytes_per_step))


def _discard(ready: queue.Queue[Block | BaseException | None]) -> None:
    try:
        ready.get_nowait()
    except queue.Empty:
        return
