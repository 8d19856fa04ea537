"""Detection of image formats, and of whether they are supported.

The format is detected from the first bytes of a file, because names are unreliable: HEIC photos are renamed
to .jpg, and browsers save `photo.jpg_large`. The name is used only for files without contents, such as
placeholders of bucket images.
"""

from __future__ import annotations

import re

from trainer.data.header import KIND_NAMES, image_kind
from trainer.data.tiff import is_raw_photo

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
        return _of_brands(start)
    if _PNM.match(start):
        return "PNM"
    return "SVG" if _SVG.match(start.removeprefix(b"\xef\xbb\xbf")) else None


def _has_bmp_header(start: bytes) -> bool:
    """Return whether a BMP header follows the letters BM, with which a text may begin too."""
    return int.from_bytes(start[14:18], "little") in _BMP_HEADERS


def _of_brands(start: bytes) -> str | None:
    """Return the image format of an ISO media file by its brands; None for a video."""
    main, end = start[8:12], int.from_bytes(start[:4], "big")
    if main not in _SHARED_BRANDS:
        return _BRANDS.get(main)
    others = [start[at : at + 4] for at in range(16, min(end, len(start)) - 3, 4)]
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
