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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

from trainer.data.progress import Progress, Task
from trainer.errors import OutOfMemoryError, StoppedError, TemporaryError
from trainer.shutdown import GracefulShutdown
from trainer.storage.store import Store

_POLL_SECONDS = 0.5

WAIT_SECONDS = 600.0
STOPPED = ("Stopped on request; packed shards are kept.", "Run the same command again to continue.")
"""Problem and remedy."""
PART_PREFIX = "packing-"
"""Prefix of the work files: the recipe and the part files."""


class WorkUnit(Protocol):
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

    def run(
        self, work: Sequence[WorkUnit], store: Store, label: str, progress: Progress, should_wait: bool = True
    ) -> None:
        """Run this machine's share of `work` and, if `should_wait`, wait for the other machines' shares.

        Raises the errors of the work, TemporaryError if the other machines time out, and StoppedError.
        """
        with self._stop.defer():  # an exception during the start of a process would leave it half-started
            self._run(work, store, progress.start(label, _count_items(work), "images"), should_wait)

    def _run(self, work: Sequence[WorkUnit], store: Store, task: Task, should_wait: bool) -> None:
        completed = self._find_completed(work, store)
        try:
            task.advance(_count_items(unit for unit in work if unit.part in completed))
            own = [unit for unit in work[self.index :: self.machines] if unit.part not in completed]
            for count in self._run_units(own, store.uri):
                task.advance(count)
            others = [unit for number, unit in enumerate(work) if number % self.machines != self.index]
            if should_wait:
                self._wait(others, store, completed, task.advance)
        finally:
            task.finish()

    def _find_completed(self, work: Sequence[WorkUnit], store: Store) -> set[str]:
        names = {entry.name for entry in store.entries(PART_PREFIX)}
        return {unit.part for unit in work} & names

    def _run_units(self, work: Sequence[WorkUnit], uri: str) -> Iterator[int]:
        """Run `work` and yield the number of images of each unit as it completes."""
        running: set[Future[int]] = set()
        try:
            for unit in work:
                running.add(self._executor.submit(unit.run, uri, self.cache_dir))
                # Submit few at a time: the items of each pending unit are in memory twice.
                while len(running) > self.processes:
                    finished, running = self._wait_briefly(running)
                    yield from finished
            while running:
                finished, running = self._wait_briefly(running)
                yield from finished
        except BrokenProcessPool:
            self._raise_if_stopped()  # the stop signal may have ended the workers
            raise OutOfMemoryError(
                "A worker process ended unexpectedly, probably out of memory.",
                "Reduce --processes.",
                received=f"{self.processes} processes",
            ) from None

    def _wait_briefly(self, running: set[Future[int]]) -> tuple[list[int], set[Future[int]]]:
        """Wait briefly; return the finished results and the unfinished futures. Raises StoppedError."""
        self._raise_if_stopped()
        finished, unfinished = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
        return [future.result() for future in finished], unfinished

    def _raise_if_stopped(self) -> None:
        if self._stop.is_requested():
            raise StoppedError(*STOPPED)

    def _wait(
        self, others: Sequence[WorkUnit], store: Store, completed: set[str], on_images: Callable[[int], None]
    ) -> None:
        last_progress = time.monotonic()
        while missing := [unit for unit in others if unit.part not in completed]:
            self._raise_if_stopped()
            new = self._find_completed(missing, store)
            if new:
                last_progress = time.monotonic()
                completed |= new
                on_images(_count_items(unit for unit in missing if unit.part in new))
            elif time.monotonic() - last_progress > self.wait_seconds:
                raise TemporaryError(
                    "Timed out waiting for the other machines to pack their share.",
                    "Start the missing machines, and restart this one.",
                    received=f"{len(missing)} work units missing after {self.wait_seconds:g} s",
                )
            else:
                time.sleep(_POLL_SECONDS)


def _count_items(work: Iterable[WorkUnit]) -> int:
    return sum(len(unit.items) for unit in work)


def start_processes(count: int, prepare: Callable[[], None]) -> ProcessPoolExecutor:
    """Return an executor of `count` processes, each of which first calls `prepare` and imports TensorFlow."""
    # Spawn fresh interpreters: forking a process with threads can deadlock.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _init_worker, (prepare,))


def _init_worker(prepare: Callable[[], None]) -> None:
    """Initialize a worker so that it exits with its parent process."""
    # Ctrl-C reaches every process of a terminal, and a supervisor's SIGTERM a whole group: only the parent
    # handles these signals.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def exit_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    prepare()
    import tensorflow as tf

    # One process per core already uses all cores.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
