"""Concurrent transfer of many files between a folder and a store.

The store verifies each file. After a failure the remaining transfers are cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from trainer.errors import StoppedError
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
