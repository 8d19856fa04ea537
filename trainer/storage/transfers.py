"""Many files at a time, between a folder and a store.

In: what is to move, and how one is moved. Out: all of it on the other side, each file verified by
the store; after a failure those that had not begun are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from trainer.exits import StoppedError
from trainer.storage.store import Entry, Store

AT_A_TIME = 32
"""Small objects are all waiting."""

Item = TypeVar("Item")
OnBytes = Callable[[int], None]
"""Hears of the size of each file that has arrived."""


def download_files(
    store: Store, entries: Iterable[Entry], folder: Path, on_bytes: OnBytes = lambda size: None
) -> None:
    """Copy `entries` of `store` to files of their names in `folder`. Raises what `Store.download` raises."""

    def download(entry: Entry) -> int:
        store.download(entry.name, folder / entry.name, entry.version)
        return entry.size

    each(download, entries, on_bytes)


def each(action: Callable[[Item], int], items: Iterable[Item], on_bytes: OnBytes) -> None:
    """Do `action`, which returns how many bytes it moved, on all `items`, several at a time."""
    pool, waits = ThreadPoolExecutor(AT_A_TIME), True
    try:
        for size in pool.map(action, items):
            on_bytes(size)
    except StoppedError:
        waits = False  # for a large file there is no time
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)
