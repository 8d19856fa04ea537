"""Files on local disk, written whole or not at all.

In: paths, and what to write there. Out: files that a crash, a full disk or a second
process never leaves half-written under their final names. Every function turns the
operating system's refusal into an error that says what to do: `TemporaryError` for a full
or failing disk, `UsageError` for a place that can't be written.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import BinaryIO

from trainer.exits import TemporaryError, TrainerError, UsageError
from trainer.storage.guard import require_right

FULL = {errno.ENOSPC, errno.EDQUOT}
_UNUSABLE = {
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
_CHUNK_BYTES = 1 << 20
ANYONE, OWNER = 0o666, 0o600
"""Modes of files: the usual one, and that of a file with a secret."""


@contextmanager
def explained(path: Path, done: str = "written") -> Iterator[None]:
    """Turn an OSError of the block, in which `path` is `done`, into an error with a remedy.

    Raises TemporaryError (full or failing disk) or UsageError (a place that can't be written).
    """
    try:
        yield
    except OSError as error:
        raise _explanation(error, path, done) from error
    except ValueError as error:
        # The only ValueErrors of file functions: a NUL or an unpaired surrogate in the path.
        raise UsageError(
            f"This is not a path that can be {done}: {error}. Received: {str(path)!r}"
        ) from error


def _explanation(error: OSError, path: Path, done: str) -> TrainerError:
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return TemporaryError(
            f"The disk is full: {path} could not be {done}; what was there before is unchanged. "
            f"Free some space or choose another folder. Received: {reason}"
        )
    if error.errno in _UNUSABLE:
        return UsageError(
            f"{path} can't be {done}. Check your rights to it, or choose another place. Received: {reason}"
        )
    return TemporaryError(f"{path} could not be {done}; try again. Received: {reason}")


def write_bytes(path: Path, data: bytes, read_back: bool = False, mode: int = ANYONE) -> None:
    """Write `data` to `path`, whole or not at all, making its folder if needed.

    A crash at any moment leaves either the old file or the new one. With `read_back` it is
    read and compared before it gets its name. `mode` is that of the file, less what the process's umask
    takes away. Raises TemporaryError, UsageError.
    """
    with explained(path), _temporary(path, data, mode) as temporary:
        if read_back and hash_file(temporary)["sha256"] != hashlib.sha256(data).hexdigest():
            raise OSError("what was written is not what is read")
        require_right(path)
        os.replace(temporary, path)
        sync_folder(path.parent)


def write_text(path: Path, text: str, mode: int = ANYONE) -> None:
    """Write `text` to `path` as UTF-8, as `write_bytes` does; what UTF-8 lacks is spelled out."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), mode=mode)


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON that keeps the order of keys, as `write_bytes` does.

    NaN and infinity, which JSON lacks, become null; NumPy scalars and arrays become numbers and lists.
    """
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def create_bytes(path: Path, data: bytes) -> bool:
    """Write `data` to `path` only if nothing is there; return whether this call made it.

    Of several processes exactly one gets True, and none sees the file half-written.
    Raises TemporaryError, UsageError.
    """
    with explained(path), _temporary(path, data) as temporary:
        require_right(path)
        try:
            # A link is atomic and create-only, and what it names is already whole.
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
    """Add `line` and a newline to the end of `path`, on disk when this returns.

    When that fails the file is as it was. A torn last line, which only a crash leaves, is
    ended first, so that it can't spoil the new one. Raises TemporaryError, UsageError, and
    ValueError when `line` holds a newline.
    """
    if "\n" in line:
        raise ValueError(f"a line can't hold a newline: {line!r}")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        require_right(path)
        with open(path, "a+b", buffering=0) as file:
            _append(file, line.encode("utf-8") + b"\n")
        if is_new:
            sync_folder(path.parent)


def prepare_folder(path: Path) -> None:
    """Make the folder `path` and prove that it can be written, by writing a small file and deleting it.

    Call it before any work is done. When it fails, nothing that it made is left. Raises
    TemporaryError, UsageError.
    """
    with explained(path):
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
    """Write every byte of `data` to an unbuffered file, which may take fewer at a time. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def is_temporary(name: PurePath) -> bool:
    """Return whether a part of `name`, which is relative, is what a crash left half-written."""
    return any(part.startswith(".") and part.endswith(".tmp") for part in name.parts)


def sync_file(path: Path) -> None:
    """Make the bytes of `path`, whoever wrote them, survive a power failure. Raises OSError."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power failure, where the file system can. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such thing; their names are safe once made.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def hash_file(
    path: Path, algorithms: Iterable[str] = ("sha256",), on_bytes: Callable[[int], None] | None = None
) -> dict[str, str]:
    """Return algorithm name to hex digest of the file's bytes, read once; `on_bytes` hears of every chunk.

    Raises OSError.
    """
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            for one in hashes.values():
                one.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return {name: one.hexdigest() for name, one in hashes.items()}


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a name beside `path` for the block to write a file at, which then takes the place of `path`.

    If the block raises, `path` is as it was. With `durable` it outlives a power failure. Raises OSError.
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


@contextmanager
def _temporary(path: Path, data: bytes, mode: int = ANYONE) -> Iterator[Path]:
    """Yield a file beside `path` that holds `data`, on disk; it is gone afterwards, moved or not."""
    with _beside(path) as temporary:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            _write_and_sync(file, data)
        yield temporary


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a name for a file beside `path`; what is there after the block is removed."""
    if not path.parent.is_dir():
        require_right(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: its files are readable by nobody else, and so would the final file be.
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
    """Return `value` in the types that JSON has."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    as_python = getattr(value, "tolist", None)
    return _plain(as_python()) if callable(as_python) else value
