"""CRC-32C, the checksum that Cloud Storage keeps for every object.

A checksum is an integer, or the base64 text that the Cloud Storage API uses.
"""

from __future__ import annotations

import base64
from pathlib import Path

import google_crc32c

_CHUNK_BYTES = 1 << 20


def file_crc32c(path: Path) -> int:
    """Return the CRC-32C of the file's bytes. Raises OSError."""
    crc32c = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc32c = int(google_crc32c.extend(crc32c, chunk))
    return crc32c


def as_text(crc32c: int) -> str:
    """Return the checksum as in the Cloud Storage API: base64 of its four bytes, big-endian."""
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()
