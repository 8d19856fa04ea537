"""Atomic and fenced writes of files on local disk.

No crash, full disk or concurrent process leaves a partially written file under its final name. Every function
translates an OSError into an error with a remedy: `TemporaryError` for a full or failing disk, `UsageError`
for a path that cannot be written.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import BinaryIO

from trainer.errors import TemporaryError, TrainerError, UsageError

# Global to the process instead of passed to every writer: a writer without it would overwrite silently.
_GUARDS: dict[Path, Callable[[], None]] = {}


@contextmanager
def guarded(folder: Path, require: Callable[[], None]) -> Iterator[None]:
    """Call `require` before every change below `folder` while the block runs."""
    folder = folder.absolute()
    _GUARDS[folder] = require
    try:
        yield
    finally:
        _GUARDS.pop(folder, None)


def require_right(path: Path) -> None:
    """Raise the error of the guard of any folder above `path`: TemporaryError if the lease is lost."""
    if not _GUARDS:
        return
    absolute = path.absolute()
    for folder, require in list(_GUARDS.items()):
        if folder == absolute or folder in absolute.parents:
            require()


FULL = {errno.ENOSPC, errno.EDQUOT}
_INVALID_PATH = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENOTEMPTY,
}
_OCCUPIED = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_CHUNK_BYTES = 1 << 20
ANYONE, OWNER = 0o666, 0o600
"""File modes, before the umask: the default, and that of a file with a secret."""


class DiskFullError(TemporaryError):
    """The disk of `path` is full; `done` is a past participle."""

    def __init__(self, path: Path, done: str, reason: str) -> None:
        super().__init__(
            f"The disk is full: {path} could not be {done}; the previous content is unchanged.",
            "Free some space, or choose another folder.",
            received=reason,
        )
        self.path = path


@contextmanager
def translate_errors(path: Path, done: str = "written") -> Iterator[None]:
    """Translate an OSError of the block into an error with a remedy; `done` is a past participle.

    Raises TemporaryError (full or failing disk) or UsageError (invalid path or missing permission).
    """
    try:
        yield
    except OSError as error:
        raise _translated(error, path, done) from error
    except ValueError as error:
        # File functions raise ValueError only for a NUL or an unpaired surrogate in the path.
        raise UsageError(
            f"The path cannot be {done}: {error}.", "Use another path.", received=f"{str(path)!r}"
        ) from error


def _translated(error: OSError, path: Path, done: str) -> TrainerError:
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return DiskFullError(path, done, reason)
    if error.errno in _INVALID_PATH:
        remedy = "Check its permissions, or choose another location."
        if error.errno in _OCCUPIED:
            remedy = "A file has the name of a folder, or a folder that of a file. Choose another location."
        return UsageError(f"{path} cannot be {done}.", remedy, received=reason)
    return TemporaryError(f"{path} could not be {done}.", "Try again.", received=reason)


def write_bytes(path: Path, data: bytes, read_back: bool = False, mode: int = ANYONE) -> None:
    """Write `data` to `path` atomically, creating its folder if needed.

    A crash at any moment leaves either the old file or the new one. With `read_back` the new file is read and
    compared before the rename. `mode` is the file's mode before the umask. Raises TemporaryError, UsageError.
    """
    with translate_errors(path), _temporary(path, data, mode) as temporary:
        if read_back and hash_file(temporary)["sha256"] != hashlib.sha256(data).hexdigest():
            raise OSError("the file differs from the data that was written")
        require_right(path)
        os.replace(temporary, path)
        sync_folder(path.parent)


def write_text(path: Path, text: str, mode: int = ANYONE) -> None:
    """Write `text` to `path` as UTF-8, as `write_bytes` does; unencodable characters are escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), mode=mode)


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON, keys in their order, as `write_bytes` does.

    JSON has no NaN and no infinity, so they become null. NumPy scalars and arrays become numbers and lists.
    """
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def create_bytes(path: Path, data: bytes) -> bool:
    """Write `data` to `path` only if `path` does not exist; return whether this call created it.

    Of several processes exactly one gets True, and none sees a partially written file. Raises TemporaryError,
    UsageError.
    """
    with translate_errors(path), _temporary(path, data) as temporary:
        require_right(path)
        try:
            # A hard link is atomic and fails if `path` exists, and the file it links to is complete.
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            return _create_without_link(path, data)
        sync_folder(path.parent)
    return True


def append_line(path: Path, line: str) -> None:
    """Append `line` and a newline to `path`; both are on disk on return.

    If that fails, the file is unchanged. An incomplete last line, which only a crash leaves, is terminated
    first, so that it does not corrupt the new one. Raises TemporaryError, UsageError, and ValueError if
    `line` contains a newline.
    """
    if "\n" in line:
        raise ValueError(f"a line cannot contain a newline: {line!r}")
    with translate_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        require_right(path)
        with open(path, "a+b", buffering=0) as file:
            _append(file, line.encode("utf-8") + b"\n")
        if is_new:
            sync_folder(path.parent)


def prepare_folder(path: Path) -> None:
    """Create the folder `path` and verify that it is writable, by writing and deleting a small file.

    Call it before any work is done. If it fails, the folders that it created are removed. Raises
    TemporaryError, UsageError.
    """
    with translate_errors(path):
        missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
        try:
            path.mkdir(parents=True, exist_ok=True)
            with _temporary(path / "write-test", b"x" * 4096):
                pass
        except BaseException:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()
            raise


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file, whose `write` may be partial. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def is_temporary(name: PurePath) -> bool:
    """Return whether a part of the relative `name` is that of a partially written file or folder."""
    return any(part.startswith(".") and part.endswith(".tmp") for part in name.parts)


def sync_file(path: Path) -> None:
    """Flush the bytes of `path` to disk (fsync), even if another process wrote them. Raises OSError."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk (fsync), where the file system supports it. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support fsync of a folder; their names are durable once created.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def hash_file(
    path: Path, algorithms: Iterable[str] = ("sha256",), on_bytes: Callable[[int], None] | None = None
) -> dict[str, str]:
    """Return the hex digest of the file's bytes for each algorithm; the file is read once.

    `on_bytes` is called with the size of every chunk. Raises OSError.
    """
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            for digest in hashes.values():
                digest.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return {name: digest.hexdigest() for name, digest in hashes.items()}


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file that the block writes there then replaces `path`.

    If the block raises, `path` is unchanged. With `durable` the file survives a power failure. Raises
    OSError.
    """
    with _beside(path) as temporary:
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        require_right(path)
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename the complete folder `temporary` to `final`, replacing any existing folder.

    The old folder is first renamed and then deleted, so that no process sees it in part. Raises
    TemporaryError, UsageError.
    """
    old = final.with_name(f".{final.name}.old.tmp")
    _remove_folder(old)
    with translate_errors(final):
        require_right(final)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        sync_folder(final.parent)
    _remove_folder(old)


def remove_leftovers(folder: Path) -> None:
    """Remove the partially written files and folders that killed processes left below `folder`."""
    with translate_errors(folder, "cleared"):
        for parent, folders, files in os.walk(folder):
            for name in filter(lambda name: is_temporary(Path(name)), files):
                Path(parent, name).unlink(missing_ok=True)
            for name in filter(lambda name: is_temporary(Path(name)), folders):
                shutil.rmtree(Path(parent, name))
            folders[:] = [name for name in folders if not is_temporary(Path(name))]


def _remove_folder(path: Path) -> None:
    """Remove the leftovers of a crash at `path`. Raises TemporaryError, UsageError."""
    with translate_errors(path, "removed"):
        if path.exists():
            require_right(path)
            shutil.rmtree(path)


@contextmanager
def _temporary(path: Path, data: bytes, mode: int = ANYONE) -> Iterator[Path]:
    """Yield a file beside `path` with `data` flushed to disk; afterwards it is removed if still there."""
    with _beside(path) as temporary:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            _write_and_sync(file, data)
        yield temporary


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a path for a temporary file beside `path`; a file that is still there afterwards is removed."""
    if not path.parent.is_dir():
        require_right(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: it creates files with mode 0600, which the final file would inherit.
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
    finally:
        if temporary.exists():
            with suppress(OSError):
                temporary.unlink()


def _write_and_sync(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _create_without_link(path: Path, data: bytes) -> bool:
    try:
        file = open(path, "xb")  # noqa: SIM115
    except FileExistsError:
        return False
    try:
        with file:
            _write_and_sync(file, data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _append(file: io.FileIO, data: bytes) -> None:
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        data = data if file.read(1) == b"\n" else b"\n" + data
    try:
        write_all(file, data)
        os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            file.truncate(size)
        raise


def _plain(value: object) -> object:
    """Return `value` converted to JSON types."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    as_python = getattr(value, "tolist", None)
    return _plain(as_python()) if callable(as_python) else value
