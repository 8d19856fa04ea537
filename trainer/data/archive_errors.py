"""Error handling for damaged archives and unreadable files.

The readers of the standard library raise many exception types on damaged bytes; all are translated to
DataError. An I/O error or a lack of memory is not damage: another attempt may succeed.
"""

from __future__ import annotations

import errno
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from trainer.errors import DataError, TemporaryError, TrainerError, causes_of

CHUNK_BYTES = 1 << 18
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,
    OverflowError,
    RuntimeError,
)
"""Exceptions that the readers of the standard library raise on damaged bytes, except for OSError."""
# The readers raise an OSError without a number for damaged bytes. EINVAL: an offset leads out of the file.
_NUMBERS_OF_DAMAGE = (None, errno.EINVAL)
_OF_THE_PATH = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
    }
)
_OF_THE_PROCESS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@contextmanager
def reading(path: Path, part: str = "it") -> Iterator[None]:
    """Translate the exceptions that a reader raises while it reads `part` of the archive at `path`.

    Damaged bytes raise DataError, other I/O errors the error of `read_error`, and a lack of memory
    MemoryError.
    """
    try:
        yield
    except (*DAMAGE, OSError) as error:
        failure = _failure_behind(error)
        if failure is not None:
            raise read_error(path, failure) from error
        raise DataError(
            f"The archive cannot be read: {part} is damaged or incomplete ({error or type(error).__name__}).",
            "Download or copy it again.",
            received=path,
        ) from error


def _failure_behind(error: BaseException) -> OSError | None:
    """Return the I/O error that caused `error`, or None for damaged bytes.

    `zipfile` and `tarfile` replace some I/O errors by their own exceptions.
    """
    failures = (cause for cause in causes_of(error) if isinstance(cause, OSError))
    return next((failure for failure in failures if failure.errno not in _NUMBERS_OF_DAMAGE), None)


def read_error(source: object, error: OSError) -> TrainerError:
    """Return the error for a failure to read `source`: DataError for its path, otherwise TemporaryError.

    Raises MemoryError if the system has no memory left.
    """
    reason = error.strerror or str(error)
    if error.errno == errno.ENOMEM:
        raise MemoryError(reason) from error
    if error.errno in _OF_THE_PATH:
        return DataError(
            f"The file cannot be read: {reason}.", "Check its path and its permissions.", received=source
        )
    return TemporaryError(f"The file could not be read: {reason}.", "Try again.", received=source)


def is_of_the_process(error: OSError) -> bool:
    """Return whether `error` is a limit of this process or system, which any other file would meet too."""
    return error.errno in _OF_THE_PROCESS


class Readable(Protocol):
    """A stream that can be read in chunks."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, or none at the end."""


def chunks(source: Readable, path: Path, member: str) -> Iterator[bytes]:
    """Yield the bytes of one member of the archive at `path`. Raises the errors of `reading`."""
    while True:
        with reading(path, f"member {member!r}"):
            chunk = source.read(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk
