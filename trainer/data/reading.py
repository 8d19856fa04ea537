"""Decoding routes for image files: directly, after conversion, or not at all.

The exported model decodes images inside its graph, and training uses the same operations. Files for which
these operations give the same result as Pillow are decoded directly. Everything else that Pillow can decode
is converted first, see `trainer.data.convert`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

from trainer.data.formats import CONVERTED, SNIFF_BYTES, can_convert, picture_format
from trainer.data.header import declared_size, gif_frames, jpeg_segments
from trainer.data.tiff import ORIENTATION, first_directory

LOSSLESS = "lossless JPEG"
_TEXT_TURNED = "PNG turned by its text alone"
_LOSSLESS_FRAMES = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_XMP_TAG = b"tiff:Orientation"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
_MOST_TEXT_BYTES = 1 << 20
_ALPHA_HEADER_BYTES = 56
_USUAL_MASKS = bytes.fromhex("0000ff00 00ff0000 ff000000")


class Route(NamedTuple):
    """Decoding route of one file."""

    way: Literal["direct", "convert", "turn", "refuse"]
    """'turn' adds an EXIF orientation to a file that is otherwise decoded directly."""
    format: str = ""
    """Display name; empty for 'direct'."""
    orientation: int = 1
    """For 'turn', 2 to 8."""


DIRECT = Route("direct")


def how_to_read(data: bytes) -> Route:
    """Return the decoding route for the contents of a whole file, based on its headers.

    'direct' is also the route for bytes that are not an image, or a damaged one: `reason_not_to_decode` and
    the decoder detect these. 'refuse' is the route for an image in an unsupported format.
    """
    name = picture_format(data[:SNIFF_BYTES])
    reader = _READERS.get(name or "")
    if reader is not None:
        try:
            return reader(data)
        except (struct.error, IndexError, ValueError, zlib.error):
            return DIRECT
    if name is None:
        return DIRECT
    return Route("convert" if name in CONVERTED and can_convert(name) else "refuse", name)


def _jpeg_route(data: bytes) -> Route:
    segments = list(jpeg_segments(data))
    frame, _, header_end = segments[-1]
    if frame in _LOSSLESS_FRAMES:
        return Route("convert", LOSSLESS)
    if data.find(_XMP_TAG, 0, header_end) < 0:
        return DIRECT
    bodies = [data[start:end] for marker, start, end in segments if marker == 0xE1]
    exif = [body[6:] for body in bodies if body.startswith(b"Exif\0\0")]
    xmp = [body for body in bodies if body.startswith(b"http://ns.adobe.com/xap/1.0/\0")]
    return _turned("JPEG turned by its XMP alone", exif, xmp)


def _png_route(data: bytes) -> Route:
    chunks = list(_png_chunks(data))
    exif = [data[start:end] for kind, start, end in chunks if kind == b"eXIf"]
    texts = dict(_png_texts(data, chunks))
    if not exif:
        profiles = [texts[key] for key in _PROFILES if key in texts]
        exif = [_profile(text).removeprefix(b"Exif\0\0") for text in profiles]
        orientation = _orientation(exif)
        if orientation is not None and 2 <= orientation <= 8:
            return Route("turn", _TEXT_TURNED, orientation)
    return _turned(_TEXT_TURNED, exif, [texts.get(b"XML:com.adobe.xmp", b"")])


def _webp_route(data: bytes) -> Route:
    if data[12:16] != b"VP8X":
        return DIRECT
    if data[20] & 0x02:
        return Route("convert", "animated WebP")
    if not data[20] & 0x04:
        return DIRECT
    chunks = list(_riff_chunks(data))
    exif = [data[start:end].removeprefix(b"Exif\0\0") for kind, start, end in chunks if kind == b"EXIF"]
    xmp = [data[start:end] for kind, start, end in chunks if kind == b"XMP "]
    route = _turned("WebP turned by its XMP alone", exif, xmp)
    return route if route is DIRECT else Route("convert", route.format)


def _gif_route(data: bytes) -> Route:
    """Return 'direct' only if TensorFlow, which supports neither canvas nor transparency, is correct."""
    frames = list(gif_frames(data))
    if not frames:
        return DIRECT
    first, canvas = frames[0], declared_size(data)
    if (first.left, first.top, first.width, first.height) != (0, 0, *(canvas or ())):
        return Route("convert", "GIF with a partial frame")
    if first.is_transparent:
        return Route("convert", "GIF with transparency")
    # TensorFlow allocates space for the largest frame, and requires a colour table.
    is_larger = any(frame.width > first.width or frame.height > first.height for frame in frames)
    if is_larger or not first.has_colours:
        return Route("convert", "GIF of an unusual form")
    return DIRECT


def _bmp_route(data: bytes) -> Route:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes < 40:
        return Route("convert", "OS/2 BMP")
    bits, compression = struct.unpack_from("<HI", data, 28)
    if compression == 3 and header_bytes >= _ALPHA_HEADER_BYTES and any(data[66:70]):
        return Route("convert", "BMP with alpha")
    if bits == 16:
        return Route("convert", "16-bit BMP")
    if compression == 0 or (compression == 3 and bits == 32 and data[54:66] == _USUAL_MASKS):
        return DIRECT
    return Route("convert", "BMP of unusual colours" if compression == 3 else "compressed BMP")


_READERS = {
    "JPEG": _jpeg_route,
    "PNG": _png_route,
    "WebP": _webp_route,
    "GIF": _gif_route,
    "BMP": _bmp_route,
}


def _turned(name: str, exif: list[bytes], xmp: list[bytes]) -> Route:
    """Return the route of an image with an orientation in XMP; an orientation in EXIF takes precedence."""
    found = next((match for text in xmp if (match := _XMP_ORIENTATION.search(text))), None)
    if found is None or _orientation(exif) is not None:
        return DIRECT
    orientation = int(found[1])
    return Route("turn", name, orientation) if 2 <= orientation <= 8 else DIRECT


def _orientation(exif: list[bytes]) -> int | None:
    """Return the orientation in the first EXIF block, or None."""
    return first_directory(exif[0]).get(ORIENTATION) if exif else None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the body of each chunk (PNG specification, 5.3)."""
    position = 8
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        yield data[position + 4 : position + 8], position + 8, position + 8 + length
        position += 12 + length


def _png_texts(data: bytes, chunks: list[tuple[bytes, int, int]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield keyword and text of chunks that may contain an orientation (PNG specification, 11.3.3)."""
    for kind, start, end in chunks:
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        key, _, text = data[start:end].partition(b"\0")
        if key not in (*_PROFILES, b"XML:com.adobe.xmp"):
            continue
        is_packed = kind == b"zTXt"
        if kind == b"iTXt":
            is_packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
        elif is_packed:
            text = text[1:]
        yield key, zlib.decompressobj().decompress(text, _MOST_TEXT_BYTES) if is_packed else text


def _profile(text: bytes) -> bytes:
    """Decode a raw profile of ImageMagick: hex digits after a line with a name and a line with a length."""
    return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii", "replace"))


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the body of each chunk (WebP container, RFC 9649)."""
    position = 12
    while position + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, position + 4)
        yield data[position : position + 4], position + 8, position + 8 + length
        position += 8 + length + length % 2
