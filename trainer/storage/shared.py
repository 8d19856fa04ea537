"""What several processes share on one disk.

In: a path, and how to make what belongs there. Out: a lock that dies with its process, and
folders that are built once, by one process, and that nobody sees before they are complete.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.storage.local import explained, sync_folder, write_json


@contextmanager
def exclusive(lock: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `lock` during the block; `on_wait` is called once if another process has it.

    The system frees the lock however its process ends. The file stays: to delete it would let
    two processes hold two files of one name. Raises TemporaryError, UsageError.
    """
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "ab")  # noqa: SIM115
    with file:
        with explained(lock):
            _lock(file.fileno(), on_wait)
        yield


def build_once(
    folder: Path, build: Callable[[Path], None], on_wait: Callable[[], None] | None = None
) -> Path:
    """Return `folder`, first letting `build` fill it if it isn't there complete.

    `build` gets an empty folder beside `folder`, which is renamed when it returns. After any
    failure nothing is left. A record beside the folder (files and bytes) finds a folder that
    has lost files since, which is then built anew. Raises what `build` raises, TemporaryError, UsageError.
    """
    if _is_intact(folder):
        return folder
    with exclusive(folder.with_name(f".{folder.name}.lock"), on_wait):
        if not _is_intact(folder):
            _build(folder, build)
    return folder


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder below `parent` that no other process is given; it is gone afterwards.

    Those of processes that were killed are removed. Raises TemporaryError, UsageError.
    """
    # Under one lock: a folder that is made and not yet locked looks like one that was left.
    with exclusive(parent / ".lock"), explained(parent):
        for left in parent.iterdir():
            _remove_if_free(left)
        folder = Path(tempfile.mkdtemp(dir=parent))
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_if_free(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # it is gone, or not ours to touch
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # its process is alive
    finally:
        os.close(descriptor)


def _lock(descriptor: int, on_wait: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        if on_wait:
            on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    # One name per folder, guarded by the lock: what a killed process left is found and removed.
    partial = folder.with_name(f".{folder.name}.partial")
    with explained(folder):
        for leftover in (partial, folder):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        _remove_partials(folder.parent, partial)
    try:
        build(partial)
        files, size = _count(partial)
        # The record first: a folder without one never counts, whatever moment the machine stops at.
        write_json(_record(folder), {"files": files, "bytes": size})
        with explained(folder):
            os.replace(partial, folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_partials(parent: Path, own: Path) -> None:
    """Remove what killed processes left half-built; those folders may never be asked for again."""
    for partial in parent.glob(".*.partial"):
        lock = partial.with_suffix(".lock")
        if partial == own or not lock.exists():
            continue
        with open(lock, "ab") as file, suppress(OSError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial, ignore_errors=True)


def _is_intact(folder: Path) -> bool:
    try:
        record = json.loads(_record(folder).read_bytes())
        return folder.is_dir() and (record["files"], record["bytes"]) == _count(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _record(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _count(folder: Path) -> tuple[int, int]:
    """Return how many files are below `folder`, and their bytes."""
    files = size = 0
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_size
    return files, size
