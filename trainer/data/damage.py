"""Archives that turn out to be damaged while they are read.

In: blocks and streams that read an archive. Out: one kind of error for the many that the
standard library's readers raise.
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

from trainer.exits import DataError

CHUNK_BYTES = 1 << 18
# Everything that the readers of the standard library raise on damaged bytes.
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
    """Turn whatever a reader raises on damaged bytes into a DataError that names the archive."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(
            f"The archive can't be read: {what} is damaged or incomplete ({error or type(error).__name__}). "
            f"Get it again. Received: {path}"
        ) from error


class Readable(Protocol):
    """What can be read piece by piece."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""


def chunks(source: Readable, path: Path, member: str) -> Iterator[bytes]:
    """Yield the bytes of one member of the archive at `path`. Raises DataError when they are damaged."""
    while True:
        with reading(path, f"member {member!r}"):
            chunk = source.read(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk
