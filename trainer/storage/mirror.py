"""A local folder, and the same in a store.

In: a folder that a run fills, and the store that is to hold it. Out: after each `sync` the store
holds what the folder held, whole files only. On disk the folder is the store, and there is
nothing to do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path, PurePath

from trainer.storage.local import is_temporary
from trainer.storage.store import Store
from trainer.storage.transfers import OnBytes, download_files, each

# Read whole before it is sent: such a file, a log say, may grow meanwhile.
_SMALL_BYTES = 8 << 20

Version = tuple[int, int, int]


class Mirror:
    """Keeps `store` equal to `folder`, but for the names in `apart`; one thread at a time."""

    def __init__(
        self,
        folder: Path,
        store: Store | None,
        apart: Collection[str] = (),
        require: Callable[[], None] = lambda: None,
    ) -> None:
        """`require` is asked before each change of the store, and raises when this process may make none."""
        self.folder, self._store, self._apart = folder, store, frozenset(apart)
        self._require = require
        self._sent: dict[str, Version | None] = {}
        """By name what was sent, None for what was there before and isn't known here."""
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """Let a sync that is under way in another thread send and remove nothing more."""
        self._closed.set()

    def pull(self, is_wanted: Callable[[str], bool], on_bytes: OnBytes = lambda size: None) -> None:
        """Fill the folder with the files that `is_wanted`; the last sync removes the others there."""
        if self._store is None:
            return
        entries = [entry for entry in self._store.entries() if entry.name not in self._apart]
        wanted = [entry for entry in entries if is_wanted(entry.name)]
        download_files(self._store, wanted, self.folder, on_bytes)
        here = dict(self._here())
        self._sent = {entry.name: here.get(entry.name) for entry in entries}

    def waiting_bytes(self) -> int:
        """Return how many bytes a sync would send."""
        return sum(version[1] for _, version in self._changed()) if self._store else 0

    def sync(self, on_bytes: OnBytes = lambda size: None, is_whole: bool = True) -> None:
        """Send what is new, then remove what is gone. Raises what `Store` raises.

        Until the folder `is_whole`, what was in the store and never in the folder stays.
        """
        if self._store is None:
            return
        with self._lock:
            changed, store = self._changed(), self._store
            each(lambda change: self._send(store, *change), changed, on_bytes)
            self._sent |= dict(changed)
            here = {name for name, _ in self._here()}
            gone = {name for name, version in self._sent.items() if is_whole or version is not None} - here
            for name in sorted(gone):
                # A folder that is gone altogether is one that this process has left.
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
            return 0  # it is gone again: the next sync removes it
        return version[1]

    def _changed(self) -> list[tuple[str, Version]]:
        return [(name, version) for name, version in self._here() if self._sent.get(name) != version]

    def _here(self) -> Iterator[tuple[str, Version]]:
        """Yield the files of the folder, and what tells each from another one of its name."""
        for parent, _, files in os.walk(self.folder):
            for file in sorted(files):
                path = Path(parent, file)
                name = path.relative_to(self.folder).as_posix()
                if name in self._apart or is_temporary(PurePath(name)):
                    continue
                with suppress(FileNotFoundError):
                    status = path.stat()
                    yield name, (status.st_mtime_ns, status.st_size, status.st_ino)
