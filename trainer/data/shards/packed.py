"""Random access to the encoded images in shards, cached on local disk.

Opens the index of a folder or bucket with shards. The images of each split are a sequence whose names and
bytes are read on demand.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from trainer.data.groups import require_no_tables
from trainer.data.items import Source
from trainer.data.shards.index import (
    INDEX_FILE,
    RECIPE_FILE,
    Index,
    Shard,
    ShardManifest,
    read_shard_manifest,
)
from trainer.errors import DataError, UsageError
from trainer.sanitize import shown_address
from trainer.spec.schema import DataSpec
from trainer.storage import open_store, prepare_folder
from trainer.storage.store import Store, is_bucket, without_scheme

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
                    f"A shard cannot be read: {error.strerror}.", "Check the disk.", received=path
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


def find_shards(spec: DataSpec) -> tuple[Store, ShardManifest] | None:
    """Return the store and the manifest of the shards that `spec` refers to, or None for another source.

    Raises DataError if the manifest is invalid, if packing is not complete, or if the layout is "shards" and
    there are none.
    """
    location = without_scheme(spec.source)
    if spec.layout not in ("auto", "shards") or not (is_bucket(location) or os.path.isdir(location)):
        manifest = None
    else:
        store = open_store(location)
        manifest = read_shard_manifest(store)
        if manifest is None and store.find(RECIPE_FILE) is not None:
            raise DataError(
                "The shards are incomplete.",
                "Run the same `trainer shard` command again to finish packing.",
                received=f"{shown_address(spec.source)!r}",
            )
    if manifest is not None:
        require_single_label(spec)
        require_no_tables(spec)
        return store, manifest
    if spec.layout == "shards":
        raise DataError(
            "data.layout is shards, but the source has no shards.json.",
            "Check data.source, or pack the data with `trainer shard`, which writes this file last.",
            received=f"{shown_address(spec.source)!r}",
        )
    return None


def require_single_label(spec: DataSpec) -> None:
    """Raise UsageError for multi-label data, because a shard stores one label per image."""
    if spec.labels == "multi":
        raise UsageError(
            "Shards store one label per image, but data.labels is multi.",
            "Train on the table itself with --data TABLE.csv, with the images beside it.",
            received=f"{shown_address(spec.source)!r}",
        )


def open_shards(
    store: Store, manifest: ShardManifest, spec: DataSpec, cache_dir: Path
) -> tuple[Index, ShardCache]:
    """Return the index of the shards in `store` and the cache that reads them. Raises DataError."""
    folder = cache_dir / "shards" / manifest.index_sha256[:16]
    index = Index(_fetch_index(store, folder), manifest)
    if len(index.starts) != len(manifest.shards) + 1 or index.starts[-1] != len(index):
        raise DataError(
            "The index of the shards does not match shards.json.",
            "Pack the shards again with `trainer shard`.",
            received=store.uri,
        )
    return index, ShardCache(store, manifest.shards, folder, spec.staged_mib << 20, spec.shuffle_shards)


def _fetch_index(store: Store, folder: Path) -> Path:
    if not is_bucket(store.uri):
        return Path(store.uri) / INDEX_FILE
    prepare_folder(folder)
    store.download(INDEX_FILE, folder / INDEX_FILE)
    return folder / INDEX_FILE


def find_starts(split: str, manifest: ShardManifest, index: Index) -> NDArray[np.int64]:
    """Return the numbers of the first images of the shards of `split`, and the end of the last shard."""
    own = [number for number, shard in enumerate(manifest.shards) if shard.split == split]
    return index.starts[[*own, own[-1] + 1]]  # the shards of a split are consecutive


def packed_items(split: str, manifest: ShardManifest, index: Index, cache: ShardCache) -> PackedItems:
    """Return the images of `split`, which must have at least one shard."""
    starts = find_starts(split, manifest, index)
    return PackedItems(index, cache, int(starts[0]), int(starts[-1]))


@dataclass(frozen=True)
class _PackedImage:
    """One image in a shard."""

    name: str
    index: Index
    cache: ShardCache
    number: int
    encoding: str = "image"

    def read(self) -> bytes:
        """Return its bytes. Raises DataError if they are damaged."""
        shard = int(self.index.shards_of(np.asarray([self.number], np.int64))[0])
        return read_packed(self.index, self.cache, shard, self.number)


class PackedItems(Sequence[Source]):
    """Sequence of the images of a split; names are read on demand."""

    def __init__(self, index: Index, cache: ShardCache, first: int, end: int) -> None:
        self._index, self._cache, self._first, self._end = index, cache, first, end

    def __len__(self) -> int:
        return self._end - self._first

    @overload
    def __getitem__(self, key: int) -> Source: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[Source]: ...

    def __getitem__(self, key: int | slice) -> Source | Sequence[Source]:
        numbers = range(self._first, self._end)[key]
        if isinstance(numbers, int):
            return self._open(numbers, self._index.names(numbers, numbers + 1)[0])
        return [self._open(number, self._index.names(number, number + 1)[0]) for number in numbers]

    def __iter__(self) -> Iterator[Source]:
        names = self._index.names(self._first, self._end)
        return (self._open(self._first + row, name) for row, name in enumerate(names))

    def _open(self, number: int, name: str) -> Source:
        return _PackedImage(name, self._index, self._cache, number)


def read_packed(index: Index, cache: ShardCache, shard: int, number: int) -> bytes:
    """Return the bytes of one image, by its shard and its number in the dataset. Raises DataError."""
    location = shard, int(index.offsets[number]), int(index.lengths[number])
    data, expected = cache.read(*location), index.checksums[number]
    if google_crc32c.value(data) != expected and cache.discard(shard):
        data = cache.read(*location)  # the local copy may be damaged
    if google_crc32c.value(data) != expected:
        raise DataError(
            "A shard is damaged: the checksum of an image does not match.",
            "Copy the shard again, or pack the data again with `trainer shard`.",
            received=f"{cache.uri(shard)}, byte {index.offsets[number]}",
        )
    return data
