"""What an image says of itself before it is decoded.

In: the first bytes of a file, or all of them. Out: its kind, its declared size, or the reason
why it isn't worth decoding. Written by hand and without an imaging library: opening a file with
one warns about large images through state that all threads share.
"""

from __future__ import annotations

import struct

MAGIC_BYTES = 12
"""How many bytes `image_kind` looks at."""
_NAMES = {"jpeg": "JPEG", "png": "PNG", "gif": "GIF", "bmp": "BMP", "webp": "WebP"}
_USUAL_MASKS = bytes.fromhex("0000ff00 00ff0000 ff000000")
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
    unsupported = _unsupported(kind, data)
    if unsupported:
        return unsupported
    size = declared_size(data)
    if size is None:
        return reason_of_failure(data)
    width, height = size
    if width * height > max_pixels:
        return f"too large: declares {width} x {height} pixels, over the limit of {max_pixels} pixels"
    if kind == "gif" and (frames := _gif_pixels(data)) > max_pixels:
        # Only the first is used, but the decoder unpacks all of them.
        return f"too large: its frames have {frames} pixels together, over the limit of {max_pixels} pixels"
    return None


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
        return f"damaged: the {_NAMES.get(kind, 'image')} can't be decoded"
    return f"truncated: the {_NAMES[kind]} ends early"


def _unsupported(kind: str, data: bytes) -> str | None:
    if kind == "webp" and data[12:16] == b"VP8X" and len(data) > 20 and data[20] & 0x02:
        return "animated WebP: only still ones are read; save its first frame as an image"
    if kind == "bmp" and len(data) >= 34:
        header_bytes, (bits, compression) = (
            struct.unpack_from("<I", data, 14)[0],
            struct.unpack_from("<HI", data, 28),
        )
        usual = compression == 0 or (compression == 3 and bits == 32 and data[54:66] == _USUAL_MASKS)
        if header_bytes < 40 or bits not in (1, 4, 8, 24, 32) or not usual:
            return f"unsupported BMP: {bits} bits, compression {compression}; save it as PNG"
    return None


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _gif_pixels(data: bytes) -> int:
    """Return the pixels of all frames (GIF89a specification, appendix A); what is cut off doesn't count."""
    pixels, position = 0, 13 + _gif_table_bytes(data[10:11])
    while position < len(data) and data[position] in (0x21, 0x2C):
        if data[position] == 0x2C:
            frame = data[position + 5 : position + 10]
            if len(frame) < 5:
                break
            width, height = struct.unpack("<HH", frame[:4])
            pixels += width * height
            position += 11 + _gif_table_bytes(frame[4:])
        else:
            position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return pixels


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
    """Of the first frame header, before which there are only marker segments (ITU T.81, B.1 and B.2)."""
    position = 2
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        if marker in (0xD9, 0xDA):
            return None
        if marker == 0xFF:
            position += 1
        elif marker in _JPEG_ALONE:
            position += 2
        else:
            position += 2 + max(struct.unpack_from(">H", data, position + 2)[0], 2)
    return None
