"""TFRecord files, written independently of the library under test."""

from __future__ import annotations

import struct


def crc32c(data: bytes) -> int:
    """Compute CRC-32C bit by bit (RFC 3720), independently of the library under test."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def example(**features: bytes | int) -> bytes:
    """Return a serialized tf.train.Example; '_' in names becomes '/'."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = field(1, field(1, value))
        else:
            feature = field(3, field(1, bytes([value])))
        entries += field(1, field(1, name.replace("_", "/").encode()) + field(2, feature))
    return field(1, entries)
