"""What an image says of itself before it is decoded.

In: the first bytes of a file, or all of them. Out: its kind, its declared size, or the reason
why it isn't worth decoding. Written by hand and without an imaging library: opening a file with
one warns about large images through state that all threads share.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

KIND_NAMES = {"jpeg": "JPEG", "png": "PNG", "gif": "GIF", "bmp": "BMP", "webp": "WebP"}
"""What `image_kind` returns, as it is written."""
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})


def image_kind(data: bytes) -> str | None:
    """Return 'jpeg', 'png', 'gif', 'bmp' or 'webp' by the first 12 bytes, None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"GIF8"):
        return "gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return "bmp" if data.startswith(b"BM") else None


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height that the image's header declares, None if it declares none."""
    readers = {"jpeg": _jpeg_size, "png": _png_size, "gif": _gif_size, "bmp": _bmp_size, "webp": _webp_size}
    kind = image_kind(data)
    try:
        return readers[kind](data) if kind else None
    except (struct.error, IndexError):
        return None


def reason_not_to_decode(data: bytes, max_pixels: int) -> str | None:
    """Return why these bytes of a whole file should not be decoded, None if they may be."""
    if not data:
        return "empty file"
    kind = image_kind(data)
    if kind is None:
        return f"not an image: starts with {data[:8]!r}"
    size = declared_size(data)
    if size is None:
        return reason_of_failure(data)
    width, height = size
    if (reason := reason_of_size(width, height, max_pixels)) is not None:
        return reason
    frames = sum(frame.width * frame.height for frame in gif_frames(data)) if kind == "gif" else 0
    if frames > max_pixels:
        # Only the first is used, but the decoder unpacks all of them.
        return f"too large: its frames have {frames} pixels together, over the limit of {max_pixels} pixels"
    return None


def reason_of_size(width: int, height: int, max_pixels: int) -> str | None:
    """Return why an image of this size should not be decoded, None if it may be."""
    if width * height <= max_pixels:
        return None
    return f"too large: declares {width} x {height} pixels, over the limit of {max_pixels} pixels"


def reason_of_failure(data: bytes) -> str:
    """Return in words why the bytes of an image that can't be decoded are useless."""
    kind = image_kind(data) or ""
    ends = {
        "jpeg": data.rstrip(b"\0").endswith(b"\xff\xd9"),
        "png": b"IEND" in data[-64:],
        "gif": data.rstrip(b"\0").endswith(b";"),
        "bmp": len(data) >= int.from_bytes(data[2:6], "little"),
        "webp": len(data) >= int.from_bytes(data[4:8], "little") + 8,
    }
    if ends.get(kind, True):
        return f"damaged: the {KIND_NAMES.get(kind, 'image')} can't be decoded"
    return f"truncated: the {KIND_NAMES[kind]} ends early"


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


class GifFrame(NamedTuple):
    """One frame of a GIF: its place on the canvas, and what its pixels mean."""

    left: int
    top: int
    width: int
    height: int
    is_transparent: bool
    """Whether one of its colours is transparent."""
    has_colours: bool
    """Whether there is a colour table, its own or that of the whole image."""


def gif_frames(data: bytes) -> Iterator[GifFrame]:
    """Yield the frames of a GIF (GIF89a specification, appendix A); what is cut off is left out."""
    table, is_transparent = _gif_table_bytes(data[10:11]), False
    position = 13 + table
    while position + 9 < len(data) and data[position] in (0x21, 0x2C):
        if data[position] == 0x2C:
            left, top, width, height = struct.unpack_from("<HHHH", data, position + 1)
            own = _gif_table_bytes(data[position + 9 : position + 10])
            position += 11 + own
            yield GifFrame(left, top, width, height, is_transparent, bool(own or table))
            is_transparent = False
        else:
            if data[position + 1] == 0xF9:
                is_transparent = bool(data[position + 3] & 1)
            position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1


def _gif_table_bytes(flags: bytes) -> int:
    """Return the size of the colour table that a byte of flags announces."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _bmp_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Of the three kinds of first chunk (WebP container, RFC 9649; lossy frames, RFC 6386)."""
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L" and data[20] == 0x2F:
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    frame = next((start for marker, start, _ in jpeg_segments(data) if marker in _JPEG_FRAMES), None)
    if frame is None:
        return None
    height, width = struct.unpack_from(">HH", data, frame + 1)
    return width, height


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment up to that of the frame, and where its body begins and ends.

    The frame header has one of the markers of ITU T.81, table B.1; before it there are only segments. Bytes
    between them are skipped, as libjpeg and Pillow do. Raises struct.error and IndexError for data cut short.
    """
    position = data.find(b"\xff", 2)
    while position >= 0:
        marker = data[position + 1]
        if marker in (0xD9, 0xDA):
            return
        if marker == 0xFF:
            position += 1
            continue
        end = position + 2
        if marker and marker not in _JPEG_ALONE:
            end += max(struct.unpack_from(">H", data, end)[0], 2)
            yield marker, position + 4, end
        if marker in _JPEG_FRAMES:
            return
        position = data.find(b"\xff", end)
