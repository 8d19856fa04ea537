"""Locks and shared folders for several processes on one disk.

A lock ends with its process. A shared folder is built once, by one process, and becomes visible when it is
complete.
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

from trainer.storage.local import sync_folder, translate_errors, write_json


@contextmanager
def exclusive(lock: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `lock` during the block; `on_wait` is called once if another process holds it.

    The kernel releases the lock however the process ends. The file is not deleted: otherwise two processes
    could lock two files of one name. Raises TemporaryError, UsageError.
    """
    with translate_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "ab")  # noqa: SIM115
    with file:
        with translate_errors(lock):
            _lock(file.fileno(), on_wait)
        yield


def build_once(
    folder: Path, build: Callable[[Path], None], on_wait: Callable[[], None] | None = None
) -> Path:
    """Return `folder`, calling `build` first if it is missing or incomplete.

    `build` fills an empty folder beside `folder`, which is then renamed. After a failure nothing remains. A
    record beside the folder (number of files and bytes) reveals files lost later; the folder is then rebuilt.
    Raises the errors of `build`, TemporaryError, UsageError.
    """
    if _is_intact(folder):
        return folder
    with exclusive(folder.with_name(f".{folder.name}.lock"), on_wait):
        if not _is_intact(folder):
            _build(folder, build)
    return folder


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder below `parent` for this process only; it is removed afterwards.

    Folders of killed processes are removed, too. Raises TemporaryError, UsageError.
    """
    # The common lock covers creating and locking: an unlocked folder would look abandoned.
    with exclusive(parent / ".lock"), translate_errors(parent):
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
        return  # already removed, or not readable
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
    # The name is fixed and guarded by the lock, so the leftover of a killed process is found and removed.
    partial = folder.with_name(f".{folder.name}.partial")
    with translate_errors(folder):
        for leftover in (partial, folder):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        _remove_partials(folder.parent, partial)
    try:
        build(partial)
        files, size = _count(partial)
        # Write the record first: a folder without a record never counts, wherever a crash interrupts this.
        write_json(_record(folder), {"files": files, "bytes": size})
        with translate_errors(folder):
            os.replace(partial, folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_partials(parent: Path, own: Path) -> None:
    """Remove the partial folders of killed processes, as those folders may never be requested again."""
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
    """Return the number of files below `folder` and their total bytes."""
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
