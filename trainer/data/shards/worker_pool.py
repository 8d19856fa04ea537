"""Distributed packing by the processes of one or more machines.

The machines share a store. Each machine scans a share of the images. When all images are scanned, each
machine computes the same assignment and writes a share of the shards. Machine 0 then writes the index and the
manifest. Completed work is recorded in the store, so that a restarted machine resumes there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

from trainer.data.progress import Progress, Task
from trainer.errors import OutOfMemoryError, StoppedError, TemporaryError
from trainer.shutdown import GracefulShutdown
from trainer.storage.store import Store

_LOOK_SECONDS = 0.5

WAIT_SECONDS = 600.0
STOPPED = "Stopped on request; what is packed is kept, the same command goes on from there."
NOTES = "packing-"
"""Prefix of the work files: the recipe and the part files."""


class Work(Protocol):
    """Unit of work that any process can run."""

    @property
    def part(self) -> str:
        """Name of the part file that records completion."""

    @property
    def items(self) -> Sequence[object]:
        """Items that the unit processes."""

    def run(self, uri: str, cache_dir: Path) -> int:
        """Process the items, write the part file, and return the number of items."""


class WorkerPool:
    """Worker pool of one machine, which shares the work with other machines."""

    def __init__(
        self,
        processes: int,
        cache_dir: Path,
        prepare: Callable[[], None],
        index: int = 0,
        machines: int = 1,
        wait_seconds: float = WAIT_SECONDS,
        stop: GracefulShutdown | None = None,
        executor: ProcessPoolExecutor | None = None,
    ) -> None:
        """Start the pool of machine `index` of `machines`.

        Waiting fails if the other machines complete nothing for `wait_seconds`. `prepare` is called first in
        each process. `executor`, from `start_processes`, is used instead of a new pool, and is not closed.
        """
        self.processes, self.cache_dir = processes, cache_dir
        self.index, self.machines, self.wait_seconds = index, machines, wait_seconds
        self._stop = stop or GracefulShutdown()
        self._owns_executor = executor is None
        self._executor = executor or start_processes(processes, prepare)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *raised: object) -> None:
        """Terminate the workers of an own executor; unfinished work is repeated by the next call."""
        if not self._owns_executor:
            return
        for child in multiprocessing.active_children():
            child.kill()
        self._executor.shutdown(cancel_futures=True)

    def do(
        self, work: Sequence[Work], store: Store, label: str, progress: Progress, waits: bool = True
    ) -> None:
        """Run this machine's share of `work` and, if `waits`, wait for the other machines' shares.

        Raises the errors of the work, TemporaryError if the other machines time out, and StoppedError.
        """
        with self._stop.defer():  # an exception during the start of a process would leave it half-started
            self._do(
                work, store, progress.start(label, sum(len(each.items) for each in work), "images"), waits
            )

    def _do(self, work: Sequence[Work], store: Store, task: Task, waits: bool) -> None:
        done = self._done(work, store)
        try:
            task.advance(sum(len(each.items) for each in work if each.part in done))
            own = [each for each in work[self.index :: self.machines] if each.part not in done]
            for count in self._results(own, store.uri):
                task.advance(count)
            others = [each for number, each in enumerate(work) if number % self.machines != self.index]
            if waits:
                self._wait(others, store, done, task.advance)
        finally:
            task.finish()

    def _done(self, work: Sequence[Work], store: Store) -> set[str]:
        names = {entry.name for entry in store.entries(NOTES)}
        return {each.part for each in work} & names

    def _results(self, work: Sequence[Work], uri: str) -> Iterator[int]:
        """Run `work` and yield the number of images of each unit as it completes."""
        running: set[Future[int]] = set()
        try:
            for each in work:
                running.add(self._executor.submit(each.run, uri, self.cache_dir))
                # Submit few at a time: the items of each pending unit are in memory twice.
                while len(running) > self.processes:
                    finished, running = self._finished(running)
                    yield from finished
            while running:
                finished, running = self._finished(running)
                yield from finished
        except BrokenProcessPool:
            self._require_going()  # the stop signal may have ended the workers
            raise OutOfMemoryError(
                "A process ended by itself, perhaps for want of memory; try fewer --processes.",
                received=f"{self.processes} processes",
            ) from None

    def _finished(self, running: set[Future[int]]) -> tuple[list[int], set[Future[int]]]:
        """Wait briefly; return the finished results and the unfinished futures. Raises StoppedError."""
        self._require_going()
        finished, unfinished = wait(running, _LOOK_SECONDS, FIRST_COMPLETED)
        return [future.result() for future in finished], unfinished

    def _require_going(self) -> None:
        if self._stop.is_requested():
            raise StoppedError(STOPPED)

    def _wait(
        self, others: Sequence[Work], store: Store, done: set[str], on_images: Callable[[int], None]
    ) -> None:
        heard = time.monotonic()
        while missing := [each for each in others if each.part not in done]:
            self._require_going()
            found = self._done(missing, store)
            if found:
                heard = time.monotonic()
                done |= found
                on_images(sum(len(each.items) for each in missing if each.part in found))
            elif time.monotonic() - heard > self.wait_seconds:
                raise TemporaryError(
                    "The other machines have not done their share; start those that are missing, and this "
                    "one again.",
                    received=f"{len(missing)} pieces not done after {self.wait_seconds:g} s",
                )
            else:
                time.sleep(_LOOK_SECONDS)


def start_processes(count: int, prepare: Callable[[], None]) -> ProcessPoolExecutor:
    """Return an executor of `count` processes, each of which first calls `prepare` and imports TensorFlow."""
    # Spawn fresh interpreters: forking a process with threads can deadlock.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (prepare,))


def _begin(prepare: Callable[[], None]) -> None:
    """Initialize a worker so that it exits with its parent process."""
    # Ctrl-C reaches every process of a terminal, and a supervisor's SIGTERM a whole group: only the parent
    # handles these signals.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    prepare()
    import tensorflow as tf

    # One process per core already uses all cores.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
