"""The checksum that a bucket knows of each of its objects: CRC-32C.

In: a file. Out: its crc32c, as a number, or as the text that the bucket says it in.
"""

from __future__ import annotations

import base64
from pathlib import Path

import google_crc32c

_CHUNK_BYTES = 1 << 20


def file_crc32c(path: Path) -> int:
    """Return the checksum of the file's bytes. Raises OSError."""
    crc32c = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc32c = int(google_crc32c.extend(crc32c, chunk))
    return crc32c


def as_text(crc32c: int) -> str:
    """Return a checksum in the form that the bucket has it in: base64 of four bytes, the highest first."""
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()
