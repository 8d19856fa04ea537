"""Detection of image formats, and the decoding route of each file: directly, after conversion, or not at all.

The format is detected from the first bytes of a file, because names are unreliable: HEIC photos are renamed
to .jpg, and browsers save `photo.jpg_large`. The name is used only for files without contents, such as
placeholders of bucket images.

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

from trainer.data.header import (
    KIND_NAMES,
    ORIENTATION,
    declared_size,
    first_directory,
    gif_frames,
    image_kind,
    is_raw_photo,
    jpeg_segments,
)

SNIFF_BYTES = 1024
"""Number of bytes that `picture_format` examines."""

CONVERTED = frozenset({"AVIF", "HEIC", "JPEG 2000", "PNM", "TIFF"})
"""Formats that Pillow or one of its plugins decodes and TensorFlow does not."""
REMEDIES = {
    "AVIF": "pip install --upgrade pillow",
    "HEIC": "pip install 'trainer[heif]'",
}
"""Commands that add support for a format."""

_ENDINGS = (
    "jpe?g|jpe|jfif|jif|pjpe?g|mpo|png|apng|webp|bmp|dib|gif|heic|heif|hif|avif|tiff?|jp2|j2k|jpx|jxl|"
    "p[bgpn]m|psd|svg|dng|cr2|cr3|nef|arw|orf|rw2|raf|pef|dcm|exr"
)
# Includes suffixes from browsers and downloaders: photo.jpg_large, photo.jpg?w=300, photo.jpg:orig,
# photo.jpg.1
_PICTURE_NAME = re.compile(rf".*\.(?:{_ENDINGS})(?:\.\d+|[_?!:&~@-][^./]*)?", re.IGNORECASE | re.DOTALL)
_SIGNATURES = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    (0, b"FUJIFILMCCD-RAW", "raw photo"),
    (0, b"IIRO", "raw photo"),
    (0, b"IIRS", "raw photo"),
    (0, b"IIU\0", "raw photo"),
    (0, b"II\x1a\0\0\0HEAPCCDR", "raw photo"),
    (0, b"\0MRM", "raw photo"),
    (0, b"FOVb", "raw photo"),
)
# ISO base media file format (ISO/IEC 14496-12): the major brand of the file, then the compatible brands.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
    b"crx ": "raw photo",
}
_SHARED_BRANDS = (b"mif1", b"msf1", b"mif2", b"miaf")
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_PNM = re.compile(rb"P[1-6][ \t\r\n]+(?:#[^\n]*\n\s*)*\d+\s")
_SVG = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*|<!DOCTYPE\s+svg[^>]*>\s*)*<svg[\s>]", re.DOTALL)


def names_a_picture(name: str) -> bool:
    """Return whether the file name has an image extension."""
    return _PICTURE_NAME.fullmatch(name) is not None


def picture_format(start: bytes) -> str | None:
    """Return the image format, such as 'JPEG' or 'HEIC', from the first SNIFF_BYTES of a file, or None."""
    kind = image_kind(start)
    if kind is not None and (kind != "bmp" or _has_bmp_header(start)):
        return KIND_NAMES[kind]
    for offset, signature, name in _SIGNATURES:
        if start.startswith(signature, offset):
            return "raw photo" if name == "TIFF" and is_raw_photo(start) else name
    if start[4:8] == b"ftyp":
        return _format_of_brands(start)
    if _PNM.match(start):
        return "PNM"
    return "SVG" if _SVG.match(start.removeprefix(b"\xef\xbb\xbf")) else None


def _has_bmp_header(start: bytes) -> bool:
    """Return whether a BMP header follows the letters BM, with which a text may begin too."""
    return int.from_bytes(start[14:18], "little") in _BMP_HEADERS


def _format_of_brands(start: bytes) -> str | None:
    """Return the image format of an ISO media file by its brands; None for a video."""
    main, end = start[8:12], int.from_bytes(start[:4], "big")
    if main not in _SHARED_BRANDS:
        return _BRANDS.get(main)
    others = [start[offset : offset + 4] for offset in range(16, min(end, len(start)) - 3, 4)]
    return next((_BRANDS[brand] for brand in others if brand in _BRANDS), "HEIC")


def can_convert(name: str) -> bool:
    """Return whether a format of CONVERTED is supported; HEIC and AVIF need more than Pillow itself."""
    if name == "HEIC":
        try:
            import pillow_heif  # noqa: F401
        except ImportError:
            return False
    if name == "AVIF":
        from PIL import features

        return bool("avif" in features.modules and features.check("avif"))
    return name in CONVERTED


LOSSLESS = "lossless JPEG"
_PNG_WITH_ORIENTATION = "PNG with orientation in text"
_LOSSLESS_FRAMES = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_XMP_TAG = b"tiff:Orientation"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
_MAX_TEXT_BYTES = 1 << 20
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
    return _route_by_orientation("JPEG with orientation in XMP", exif, xmp)


def _png_route(data: bytes) -> Route:
    chunks = list(_png_chunks(data))
    exif = [data[start:end] for kind, start, end in chunks if kind == b"eXIf"]
    texts = dict(_png_texts(data, chunks))
    if not exif:
        profiles = [texts[key] for key in _PROFILES if key in texts]
        exif = [_decode_profile(text).removeprefix(b"Exif\0\0") for text in profiles]
        orientation = _exif_orientation(exif)
        if orientation is not None and 2 <= orientation <= 8:
            return Route("turn", _PNG_WITH_ORIENTATION, orientation)
    return _route_by_orientation(_PNG_WITH_ORIENTATION, exif, [texts.get(b"XML:com.adobe.xmp", b"")])


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
    route = _route_by_orientation("WebP with orientation in XMP", exif, xmp)
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


def _route_by_orientation(name: str, exif: list[bytes], xmp: list[bytes]) -> Route:
    """Return the route of an image with an orientation in XMP; an orientation in EXIF takes precedence."""
    match = next((match for text in xmp if (match := _XMP_ORIENTATION.search(text))), None)
    if match is None or _exif_orientation(exif) is not None:
        return DIRECT
    orientation = int(match[1])
    return Route("turn", name, orientation) if 2 <= orientation <= 8 else DIRECT


def _exif_orientation(exif: list[bytes]) -> int | None:
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
        yield key, zlib.decompressobj().decompress(text, _MAX_TEXT_BYTES) if is_packed else text


def _decode_profile(text: bytes) -> bytes:
    """Decode a raw profile of ImageMagick: hex digits after a line with a name and a line with a length."""
    return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii", "replace"))


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the body of each chunk (WebP container, RFC 9649)."""
    position = 12
    while position + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, position + 4)
        yield data[position : position + 4], position + 8, position + 8 + length
        position += 8 + length + length % 2
