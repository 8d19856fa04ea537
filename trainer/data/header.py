"""Parsing of image headers without decoding.

The functions return the format, the declared size or the reason not to decode an image, from its first bytes
or all of them. They do not use an imaging library, because opening a file with one emits warnings about large
images through state that all threads share.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

KIND_NAMES = {"jpeg": "JPEG", "png": "PNG", "gif": "GIF", "bmp": "BMP", "webp": "WebP"}
"""Display names of the results of `image_kind`."""
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
ORIENTATION = 0x0112
"""Tag of the orientation in a TIFF directory."""
_NEW_SUBFILE_TYPE, _SUB_DIRECTORIES, _DNG_VERSION = 0x00FE, 0x014A, 0xC612
_BYTE, _SHORT, _LONG = 1, 3, 4


def image_kind(data: bytes) -> str | None:
    """Return 'jpeg', 'png', 'gif', 'bmp' or 'webp' from the first 12 bytes, or None for any other data."""
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
    """Return the width and height that the image's header declares, or None."""
    readers = {"jpeg": _jpeg_size, "png": _png_size, "gif": _gif_size, "bmp": _bmp_size, "webp": _webp_size}
    kind = image_kind(data)
    try:
        return readers[kind](data) if kind else None
    except (struct.error, IndexError):
        return None


def reason_not_to_decode(data: bytes, max_pixels: int) -> str | None:
    """Return why the contents of a file should not be decoded, or None."""
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
        # Only the first frame is used, but the decoder unpacks all of them.
        return f"too large: its frames have {frames} pixels together, over the limit of {max_pixels} pixels"
    return None


def reason_of_size(width: int, height: int, max_pixels: int) -> str | None:
    """Return why an image of this size should not be decoded, or None."""
    if width * height <= max_pixels:
        return None
    return f"too large: declares {width} x {height} pixels, over the limit of {max_pixels} pixels"


def reason_of_failure(data: bytes) -> str:
    """Return the reason for the failed decoding of an image: damaged or truncated."""
    kind = image_kind(data) or ""
    ends = {
        "jpeg": data.rstrip(b"\0").endswith(b"\xff\xd9"),
        "png": b"IEND" in data[-64:],
        "gif": data.rstrip(b"\0").endswith(b";"),
        "bmp": len(data) >= int.from_bytes(data[2:6], "little"),
        "webp": len(data) >= int.from_bytes(data[4:8], "little") + 8,
    }
    if ends.get(kind, True):
        return f"damaged: the {KIND_NAMES.get(kind, 'image')} cannot be decoded"
    return f"truncated: the {KIND_NAMES[kind]} ends early"


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


class GifFrame(NamedTuple):
    """One frame of a GIF: its position on the canvas and its colour properties."""

    left: int
    top: int
    width: int
    height: int
    is_transparent: bool
    """Whether one of its colours is transparent."""
    has_colours: bool
    """Whether there is a local or global colour table."""


def gif_frames(data: bytes) -> Iterator[GifFrame]:
    """Yield the frames of a GIF that have a complete descriptor (GIF89a specification, appendix A)."""
    table, is_transparent = _gif_table_bytes(data[10:11]), False
    position = 13 + table
    while position + 9 < len(data) and data[position] in (0x21, 0x2C):
        if data[position] == 0x2C:
            left, top, width, height = struct.unpack_from("<HHHH", data, position + 1)
            local_table = _gif_table_bytes(data[position + 9 : position + 10])
            position += 11 + local_table
            yield GifFrame(left, top, width, height, is_transparent, bool(local_table or table))
            is_transparent = False
        else:
            if data[position + 1] == 0xF9:
                is_transparent = bool(data[position + 3] & 1)
            position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1


def _gif_table_bytes(flags: bytes) -> int:
    """Return the size of the colour table that a flags byte declares."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _bmp_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the size from the first chunk (WebP container, RFC 9649; lossy frames, RFC 6386)."""
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
    """Yield marker, start and end of the body of each segment, up to and including the frame header.

    The frame header has one of the markers of ITU T.81, table B.1; only segments precede it. Bytes between
    segments are skipped, as in libjpeg and Pillow. Raises struct.error and IndexError for truncated data.
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


def first_directory(data: bytes) -> dict[int, int]:
    """Return the first value of each tag of the first directory of a TIFF structure (TIFF 6.0, section 2).

    TIFF files and EXIF blocks are such structures. A value is 0 if it is not a byte, short or long. Damaged
    bytes result in fewer tags, not in an error.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return {}
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack(order + "H", data[start : start + 2].ljust(2, b"\0"))
    tags: dict[int, int] = {}
    for position in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", data, position)
        form = {_BYTE: "B", _SHORT: "H", _LONG: "I"}.get(kind)
        tags.setdefault(tag, struct.unpack_from(order + form, data, position + 8)[0] if form else 0)
    return tags


def is_raw_photo(data: bytes) -> bool:
    """Return whether a TIFF file is a raw photo of a camera, whose first image is only a preview.

    DNG has a tag of its own, CR2 a marker after the header. NEF, ARW and others begin with a reduced image
    and store the photo in a subdirectory. Anything beyond `data` is ignored.
    """
    tags = first_directory(data)
    is_preview = bool(tags.get(_NEW_SUBFILE_TYPE, 0) & 1) and _SUB_DIRECTORIES in tags
    return data[8:10] == b"CR" or _DNG_VERSION in tags or is_preview
