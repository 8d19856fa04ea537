"""Error handling for damaged archives.

The readers of the standard library raise many exception types on damaged archives; all are translated to
DataError.
"""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from trainer.errors import DataError

CHUNK_BYTES = 1 << 18
# All exceptions that the readers of the standard library raise on damaged bytes.
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
    MemoryError,
    OSError,
)


@contextmanager
def reading(path: Path, what: str = "it") -> Iterator[None]:
    """Translate any exception that a reader raises on damaged bytes to a DataError that names the archive."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(
            f"The archive can't be read: {what} is damaged or incomplete ({error or type(error).__name__}). "
            f"Get it again.",
            received=path,
        ) from error


class Readable(Protocol):
    """A stream that can be read in chunks."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, or none at the end."""


def chunks(source: Readable, path: Path, member: str) -> Iterator[bytes]:
    """Yield the bytes of one member of the archive at `path`. Raises DataError if they are damaged."""
    while True:
        with reading(path, f"member {member!r}"):
            chunk = source.read(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk
