"""Local staging of shards from a bucket, within a disk budget.

Any byte range of any shard can be read. The order of the upcoming shards is set in advance: they are
prefetched while earlier shards are read, and the least recently fetched shards are evicted. Shards in a local
folder are read in place.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from trainer.data.shards.index import Shard
from trainer.errors import DataError, UsageError
from trainer.storage import prepare_folder
from trainer.storage.store import Store, is_bucket

_AT_A_TIME = 4
_TRIES = 3
_AHEAD = 2
"""Prefetch distance of the training split, as a multiple of the shuffle window, if the budget allows it."""
_IN_ORDER = 1
"""Prefetch distance of a split that is read in order, in shards."""


class _Stream:
    """Upcoming shards in order, and the current position."""

    def __init__(self, upcoming: Sequence[int], ahead: int) -> None:
        self._upcoming, self._ahead, self._at = upcoming, ahead, 0

    def reach(self, shard: int) -> bool:
        """Advance to `shard`; return False if it is the current shard or not within the prefetch distance."""
        following = self.next()[1:]
        if shard not in following:
            return False
        self._at += 1 + following.index(shard)
        return True

    def next(self) -> Sequence[int]:
        """Return the current shard and the shards to prefetch."""
        return self._upcoming[self._at : self._at + self._ahead + 1]

    def near(self) -> Sequence[int]:
        """Return `next` and as many shards before it, which may not be read completely."""
        return self._upcoming[max(0, self._at - self._ahead) : self._at + self._ahead + 1]


class ShardCache:
    """Thread-safe access to the shards of one dataset."""

    def __init__(
        self, store: Store, shards: Sequence[Shard], folder: Path, budget_bytes: int, shuffled: int
    ) -> None:
        """Limit staged shards in `folder`, which other processes may share, to `budget_bytes`.

        The limit includes the shards of other datasets in sibling folders. Training draws images from
        `shuffled` shards at a time. Raises UsageError if these and the following ones do not fit.
        """
        self._store, self._shards = store, shards
        self._is_remote = is_bucket(store.uri)
        self._ahead = _ahead_within(budget_bytes, shards, shuffled, store) if self._is_remote else 0
        self._folder = folder if self._is_remote else Path(store.uri)
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._fetches: dict[int, Future[Path]] = {}
        self._arriving: set[Shard] = set()
        self._streams: dict[str, _Stream] = {}
        """By split: validation is read while training prefetches."""
        self._pool = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="shards")

    def prefetch(self, *passes: Sequence[int]) -> None:
        """Set the shards needed next, in order, for one or more consecutive passes, and start prefetching."""
        upcoming = [shard for each in passes for shard in dict.fromkeys(each)]
        if not self._is_remote or not upcoming:
            return
        with self._lock:
            split = self._shards[upcoming[0]].split
            ahead = self._ahead if split == "train" else _IN_ORDER
            stream = self._streams[split] = _Stream(upcoming, ahead)
            self._prefetch(stream)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of a shard from `offset`. Raises DataError, TemporaryError, UsageError."""
        for _ in range(_TRIES):
            path = self._path(shard)
            try:
                with open(path, "rb", buffering=0) as file:
                    data = os.pread(file.fileno(), length, offset)
            except FileNotFoundError:
                if not self._is_remote:
                    break
                with self._lock:  # evicted by another process
                    self._fetches.pop(shard, None)
                continue
            except OSError as error:
                raise DataError(f"A shard can't be read: {error.strerror}.", received=path) from None
            return data
        raise DataError("A shard is gone; pack the data again.", received=self.at(shard))

    def at(self, shard: int) -> str:
        """Return the path or URI of a shard."""
        return self._store.at(self._shards[shard].name)

    def forget(self, shard: int) -> bool:
        """Delete the local copy of a bucket's shard to fetch it again; return False for local shards."""
        if self._is_remote:
            with self._lock:
                self._fetches.pop(shard, None)
            (self._folder / self._shards[shard].name).unlink(missing_ok=True)
        return self._is_remote

    def close(self) -> None:
        """Cancel pending downloads without waiting for running ones."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _path(self, shard: int) -> Path:
        if not self._is_remote:
            return self._folder / self._shards[shard].name
        with self._lock:
            fetch = self._begin(shard)
            stream = self._streams.get(self._shards[shard].split)
            if stream is not None and stream.reach(shard):
                self._prefetch(stream)
        return fetch.result()

    def _prefetch(self, stream: _Stream) -> None:
        for shard in stream.next():
            self._begin(shard)

    def _begin(self, shard: int) -> Future[Path]:
        if shard not in self._fetches or (
            self._fetches[shard].done() and self._fetches[shard].exception() is not None
        ):
            self._fetches[shard] = self._pool.submit(self._fetch, shard)
        return self._fetches[shard]

    def _fetch(self, shard: int) -> Path:
        entry = self._shards[shard]
        path = self._folder / entry.name
        if not (path.is_file() and path.stat().st_size == entry.size):
            prepare_folder(self._folder)
            self._make_room(entry)
            try:
                self._store.download(entry.name, path)
            finally:
                with self._lock:
                    self._arriving.discard(entry)
            if (size := path.stat().st_size) != entry.size:
                raise DataError(
                    "A shard was changed after it was written; pack the data again.",
                    received=f"{self._store.at(entry.name)}, {size} bytes instead of {entry.size}",
                )
        os.utime(path)
        return path

    def _make_room(self, arriving: Shard) -> None:
        """Evict the least recently fetched shards, except those needed now or next."""
        with self._lock:
            self._arriving.add(arriving)
            near = {shard for stream in self._streams.values() for shard in stream.near()}
            needed = {self._shards[each].name for each in near}
            files = []
            for path in self._folder.parent.glob("*/*.tfrecord"):
                with suppress(OSError):
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
            total = sum(shard.size for shard in self._arriving) + sum(each for _, each, _ in files)
            for _, each, path in sorted(files):
                if total <= self._budget_bytes:
                    return
                if path.parent != self._folder or path.name not in needed:
                    with suppress(OSError):
                        path.unlink()
                        total -= each


def _ahead_within(budget_bytes: int, shards: Sequence[Shard], shuffled: int, store: Store) -> int:
    """Return the prefetch distance in shards such that they and as many before fit. Raises UsageError."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for size, split in sorted((shard.size, shard.split) for shard in shards):
        sizes[split == "train"].append(size)
    needed = 0
    for ahead in range(_AHEAD * shuffled, shuffled - 1, -1):
        needed = sum(sizes[True][-2 * ahead - 1 :]) + sum(sizes[False][-2 * _IN_ORDER - 1 :])
        if needed <= budget_bytes:
            return ahead
    raise UsageError(
        f"data.staged_mib is less than what is read at a time of these shards; give it {-(-needed >> 20)} at "
        f"least, lower data.shuffle_shards, or pack smaller shards.",
        received=f"{budget_bytes >> 20} for "
        f"{shuffled} shards of up to {max(sizes[True], default=0) / 2**20:,.1f} MiB in {store.uri}",
    )
