"""One-way synchronization of a local folder to a store, many files at a time.

After each `sync` the store holds the files of the folder, complete files only. If the folder itself is the
store, there is nothing to synchronize.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TypeVar

from trainer.errors import StoppedError
from trainer.storage.local import is_temporary
from trainer.storage.store import Entry, Store

AT_A_TIME = 32
"""Transfers of small objects mostly wait for the network."""

Item = TypeVar("Item")
OnBytes = Callable[[int], None]
"""Callback with the size in bytes of each transferred file."""


def download_files(
    store: Store, entries: Iterable[Entry], folder: Path, on_bytes: OnBytes = lambda size: None
) -> None:
    """Copy `entries` of `store` to `folder`, under their names. Raises the errors of `Store.download`."""

    def download(entry: Entry) -> int:
        store.download(entry.name, folder / entry.name, entry.version)
        return entry.size

    transfer_all(download, entries, on_bytes)


def transfer_all(action: Callable[[Item], int], items: Iterable[Item], on_bytes: OnBytes) -> None:
    """Call `action`, which returns the number of bytes moved, for all `items`, up to `AT_A_TIME` at once."""
    pool, should_wait = ThreadPoolExecutor(AT_A_TIME), True
    try:
        for size in pool.map(action, items):
            on_bytes(size)
    except StoppedError:
        should_wait = False  # no time to wait for a large file
        raise
    finally:
        pool.shutdown(wait=should_wait, cancel_futures=True)


# Up to this size a file is read whole before it is sent, as it may grow meanwhile (a log, for example).
_SMALL_BYTES = 8 << 20

Version = tuple[int, int, int]


class Mirror:
    """Mirrors `folder` to `store`, without the names in `apart`; syncs run one at a time."""

    def __init__(
        self,
        folder: Path,
        store: Store | None,
        apart: Collection[str] = (),
        require: Callable[[], None] = lambda: None,
    ) -> None:
        """`require` is called before each change of the store; it raises if this process may not write."""
        self.folder, self._store, self._apart = folder, store, frozenset(apart)
        self._require = require
        self._sent: dict[str, Version | None] = {}
        """Version sent by name; None for a file that was in the store before and not in the folder."""
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop a sync that runs in another thread before its next upload or removal."""
        self._closed.set()

    def pull(self, is_wanted: Callable[[str], bool], on_bytes: OnBytes = lambda size: None) -> None:
        """Download the files that `is_wanted` accepts; the last sync removes the others from the store."""
        if self._store is None:
            return
        entries = [entry for entry in self._store.entries() if entry.name not in self._apart]
        wanted = [entry for entry in entries if is_wanted(entry.name)]
        download_files(self._store, wanted, self.folder, on_bytes)
        versions = dict(self._local_files())
        self._sent = {entry.name: versions.get(entry.name) for entry in entries}

    def waiting_bytes(self) -> int:
        """Return how many bytes a sync would upload."""
        return sum(version[1] for _, version in self._changed_files()) if self._store else 0

    def sync(self, on_bytes: OnBytes = lambda size: None, is_whole: bool = True) -> None:
        """Upload new and changed files, then remove deleted ones. Raises the errors of `Store`.

        With `is_whole` False, files of the store that were never in the folder are not removed.
        """
        if self._store is None:
            return
        with self._lock:
            changes, store = self._changed_files(), self._store
            transfer_all(lambda change: self._send(store, *change), changes, on_bytes)
            self._sent |= dict(changes)
            local = {name for name, _ in self._local_files()}
            sent = {name for name, version in self._sent.items() if is_whole or version is not None}
            for name in sorted(sent - local):
                # A missing folder means that this process has discarded it, not that its files were deleted.
                if not self._closed.is_set() and self.folder.is_dir():
                    self._require()
                    store.remove(name)
                    del self._sent[name]

    def _send(self, store: Store, name: str, version: Version) -> int:
        path = self.folder / name
        if self._closed.is_set():
            return 0
        self._require()
        try:
            if version[1] > _SMALL_BYTES:
                store.upload(path, name)
            else:
                store.write(name, path.read_bytes())
        except FileNotFoundError:
            return 0  # deleted meanwhile: the next sync removes it
        return version[1]

    def _changed_files(self) -> list[tuple[str, Version]]:
        return [(name, version) for name, version in self._local_files() if self._sent.get(name) != version]

    def _local_files(self) -> Iterator[tuple[str, Version]]:
        """Yield the files of the folder with their versions: mtime in ns, size in bytes, inode."""
        for parent, _, files in os.walk(self.folder):
            for file in sorted(files):
                path = Path(parent, file)
                name = path.relative_to(self.folder).as_posix()
                if name in self._apart or is_temporary(PurePath(name)):
                    continue
                with suppress(FileNotFoundError):
                    status = path.stat()
                    yield name, (status.st_mtime_ns, status.st_size, status.st_ino)
