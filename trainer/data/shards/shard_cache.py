"""Local cache of shards from a bucket, within a disk budget.

Any byte range of any shard can be read. The order of the upcoming shards is set in advance: they are
prefetched while earlier shards are read, and the least recently fetched shards are evicted. A process locks
the shards that it reads now or next, so that no other process evicts them. Shards in a local folder are read
in place.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from trainer.data.shards.index import Shard
from trainer.errors import DataError, UsageError
from trainer.storage import prepare_folder
from trainer.storage.store import Store, is_bucket

_DOWNLOAD_THREADS = 4
_ATTEMPTS = 3
_AHEAD = 2
"""Prefetch distance of the training split, as a multiple of the shuffle window, if the budget allows it."""
_IN_ORDER = 1
"""Prefetch distance of a split that is read in order, in shards."""


class _ShardStream:
    """Upcoming shards in order, and the current position."""

    def __init__(self, upcoming: Sequence[int], ahead: int) -> None:
        self._upcoming, self._ahead, self._position = upcoming, ahead, 0

    def advance_to(self, shard: int) -> bool:
        """Advance to `shard`; return False if it is the current shard or not within the prefetch distance."""
        upcoming = self.next()[1:]
        if shard not in upcoming:
            return False
        self._position += 1 + upcoming.index(shard)
        return True

    def next(self) -> Sequence[int]:
        """Return the current shard and the shards to prefetch."""
        return self._upcoming[self._position : self._position + self._ahead + 1]

    def near(self) -> Sequence[int]:
        """Return `next` and as many shards before it, which may not be read completely."""
        return self._upcoming[max(0, self._position - self._ahead) : self._position + self._ahead + 1]


class ShardCache:
    """Thread-safe access to the shards of one dataset."""

    def __init__(
        self, store: Store, shards: Sequence[Shard], folder: Path, budget_bytes: int, shuffled: int
    ) -> None:
        """Limit cached shards in `folder`, which other processes may share, to `budget_bytes`.

        The limit includes the shards of other datasets in sibling folders. Only shards that another process
        has locked can exceed it. Training draws images from
        `shuffled` shards at a time. Raises UsageError if these and the following ones do not fit.
        """
        self._store, self._shards = store, shards
        self._is_remote = is_bucket(store.uri)
        self._ahead = _find_prefetch_distance(budget_bytes, shards, shuffled, store) if self._is_remote else 0
        self._folder = folder if self._is_remote else Path(store.uri)
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._fetches: dict[int, Future[Path]] = {}
        self._arriving: set[Shard] = set()
        self._lock_files: dict[int, int] = {}
        """File descriptors with a shared lock, by shard."""
        self._streams: dict[str, _ShardStream] = {}
        """By split: validation is read while training prefetches."""
        self._pool = ThreadPoolExecutor(_DOWNLOAD_THREADS, thread_name_prefix="shards")

    def prefetch(self, *passes: Sequence[int]) -> None:
        """Set the shards needed next, in order, for one or more consecutive passes, and start prefetching."""
        upcoming = [shard for shards in passes for shard in dict.fromkeys(shards)]
        if not self._is_remote or not upcoming:
            return
        with self._lock:
            split = self._shards[upcoming[0]].split
            ahead = self._ahead if split == "train" else _IN_ORDER
            stream = self._streams[split] = _ShardStream(upcoming, ahead)
            self._prefetch(stream)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of a shard from `offset`. Raises DataError, TemporaryError, UsageError."""
        for _ in range(_ATTEMPTS):
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
                raise DataError(
                    f"A shard can't be read: {error.strerror}.", "Check the disk.", received=path
                ) from None
            return data
        raise DataError(
            "A shard does not exist.", "Pack the data again with `trainer shard`.", received=self.uri(shard)
        )

    def uri(self, shard: int) -> str:
        """Return the path or URI of a shard."""
        return self._store.at(self._shards[shard].name)

    def discard(self, shard: int) -> bool:
        """Delete the local copy of a bucket's shard to fetch it again; return False for local shards."""
        if self._is_remote:
            with self._lock:
                self._fetches.pop(shard, None)
            (self._folder / self._shards[shard].name).unlink(missing_ok=True)
        return self._is_remote

    def close(self) -> None:
        """Cancel pending downloads without waiting for running ones."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._unlock_except(())

    def _path(self, shard: int) -> Path:
        if not self._is_remote:
            return self._folder / self._shards[shard].name
        with self._lock:
            fetch = self._start_fetch(shard)
            stream = self._streams.get(self._shards[shard].split)
            if stream is not None and stream.advance_to(shard):
                self._prefetch(stream)
        return fetch.result()

    def _prefetch(self, stream: _ShardStream) -> None:
        for shard in stream.next():
            self._start_fetch(shard)
        self._unlock_except(self._find_needed())

    def _find_needed(self) -> set[int]:
        """Return the shards that are read now or next."""
        return {shard for stream in self._streams.values() for shard in stream.near()}

    def _start_fetch(self, shard: int) -> Future[Path]:
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
                    "A shard was changed after it was written.",
                    "Pack the data again with `trainer shard`.",
                    received=f"{self._store.at(entry.name)}, {size} bytes instead of {entry.size}",
                )
        os.utime(path)
        self._lock_shared(shard, path)
        return path

    def _lock_shared(self, shard: int, path: Path) -> None:
        """Lock the file of a shard against eviction by other processes."""
        with suppress(OSError), open(path, "rb") as file:  # if evicted meanwhile, `read` fetches it again
            fcntl.flock(file, fcntl.LOCK_SH)
            with self._lock:
                if shard in self._lock_files:
                    os.close(self._lock_files[shard])
                self._lock_files[shard] = os.dup(file.fileno())

    def _unlock_except(self, needed: Collection[int]) -> None:
        for shard in self._lock_files.keys() - set(needed):
            os.close(self._lock_files.pop(shard))
            self._fetches.pop(shard, None)  # the next access locks it again

    def _make_room(self, arriving: Shard) -> None:
        """Evict the least recently fetched shards, except those that any process needs now or next."""
        with self._lock:
            self._arriving.add(arriving)
            needed = self._find_needed()
            self._unlock_except(needed)
            needed_names = {self._shards[shard].name for shard in needed}
            files = []
            for path in self._folder.parent.glob("*/*.tfrecord"):
                with suppress(OSError):
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
            total = sum(shard.size for shard in self._arriving) + sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self._budget_bytes:
                    return
                if (path.parent != self._folder or path.name not in needed_names) and _evict(path):
                    total -= size


def _evict(path: Path) -> bool:
    """Delete a shard and return True, unless a process has locked it."""
    with suppress(OSError), open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False


def _find_prefetch_distance(budget_bytes: int, shards: Sequence[Shard], shuffled: int, store: Store) -> int:
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
        "data.staged_mib is too small for the shards that are read at a time.",
        f"Set it to at least {-(-needed >> 20)}, reduce data.shuffle_shards, or pack smaller shards.",
        received=f"{budget_bytes >> 20} for "
        f"{shuffled} shards of up to {max(sizes[True], default=0) / 2**20:,.1f} MiB in {store.uri}",
    )
