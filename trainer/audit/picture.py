"""Decoding of one image for measurement, with the metadata of its file.

The pixels are those that training sees, before resizing: orientation applied, 8 bits, alpha blended onto
white. The metadata come from the headers. Damaged metadata count as missing.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.convert import as_rgb, open_with_plugin, reduce_to_8_bits, suppress_warnings
from trainer.data.formats import SNIFF_BYTES, how_to_read, picture_format
from trainer.data.header import reason_not_to_decode, reason_of_size

if TYPE_CHECKING:
    from PIL import Image

_CIFAR_SIDE = 32
_ORIENTATION, _MAKE, _MODEL, _DATE, _EXIF_DIRECTORY, _DATE_ORIGINAL = 274, 271, 272, 306, 0x8769, 36867
_CAMERA_LENGTH = 48
_STANDARD_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
"""Luminance quantization table in ITU T.81, table K.1, row by row."""


class Picture(NamedTuple):
    """One decoded image and the metadata of its file."""

    image: Image.Image
    """Upright, mode RGB."""
    format: str
    """'JPEG', 'PNG', ... as of `picture_format`; 'raw' for records of CIFAR."""
    jpeg_quality: int = 0
    """Estimate in 1..100; 0 for other formats."""
    jpeg_table: int = 0
    """64-bit digest of the quantization tables; 0 for other formats."""
    orientation: int = 1
    """Orientation of EXIF or XMP, 1..8; 1 is upright or none."""
    camera: str = ""
    """Make and model of EXIF, at most 48 characters."""
    taken: datetime | None = None
    """Date of EXIF, local time."""


def decode_picture(data: bytes, encoding: str, max_pixels: int) -> Picture:
    """Decode the bytes of an item.

    Raises an exception of any type if they cannot be decoded, as Pillow's plugins do on damaged bytes, or
    declare more than `max_pixels` pixels.
    """
    from PIL import Image

    if encoding == "cifar":
        planes = np.frombuffer(data, np.uint8).reshape(3, _CIFAR_SIDE, _CIFAR_SIDE)
        return Picture(Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))), "raw")
    suppress_warnings()
    route = how_to_read(data)
    if route.way == "refuse":
        raise ValueError(f"unsupported format: {route.format}")
    if route.way != "convert" and (reason := reason_not_to_decode(data, max_pixels)):
        raise ValueError(reason)
    with open_with_plugin(data, route.format if route.way == "convert" else "") as image:
        if reason := reason_of_size(*image.size, max_pixels):
            raise ValueError(reason)
        orientation, camera, taken = _read_exif(image)
        quality, table = read_jpeg_tables(image)
        if route.way == "turn":
            orientation = route.orientation
        image.load()
        # Pillow's plugin of TIFF applies the orientation itself, and removes it from the metadata.
        is_turned = route.way == "convert" and _read_exif(image)[0] == 1
        pixels = _to_upright_rgb(image, 1 if is_turned else orientation)
    name = picture_format(data[:SNIFF_BYTES]) or ""
    return Picture(pixels, name, quality, table, orientation, camera, taken)


def _to_upright_rgb(image: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        image = reduce_to_8_bits(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.fromarray(as_rgb(np.asarray(image.convert("RGBA"))))
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    upright = image.convert("RGB")
    return upright if method is None else upright.transpose(method)


def _read_exif(image: Image.Image) -> tuple[int, str, datetime | None]:
    """Return orientation, camera and date; 1, "" and None where they are missing or damaged."""
    try:
        exif = image.getexif()
        directory = exif.get_ifd(_EXIF_DIRECTORY)
    except Exception:
        # Damaged EXIF makes Pillow raise struct.error, SyntaxError, ValueError and others.
        return 1, "", None
    orientation = exif.get(_ORIENTATION)
    is_valid = isinstance(orientation, int) and 1 <= orientation <= 8
    date = _parse_date(directory.get(_DATE_ORIGINAL)) or _parse_date(exif.get(_DATE))
    return (
        int(orientation) if is_valid and orientation else 1,
        camera_name(exif.get(_MAKE), exif.get(_MODEL)),
        date,
    )


def camera_name(make: Any, model: Any) -> str:
    """Return make and model in one text, without a repeated make; "" if both are missing."""
    make_text, model_text = (_text(value) for value in (make, model))
    if model_text.lower().startswith(make_text.lower()):
        make_text = ""
    return f"{make_text} {model_text}".strip()[:_CAMERA_LENGTH]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in value).split())


def _parse_date(value: Any) -> datetime | None:
    """Return the date of an EXIF text, "2026:11:30 12:00:00", or None."""
    try:
        return datetime.strptime(value[:19], "%Y:%m:%d %H:%M:%S")
    except (TypeError, ValueError):
        return None


def read_jpeg_tables(image: Image.Image) -> tuple[int, int]:
    """Return the estimated quality, 1..100, and a digest of the quantization tables; (0, 0) without any.

    The quality is that of the Independent JPEG Group's library whose luminance table is nearest in absolute
    difference. Cameras and Photoshop use other tables, for which it is only approximate.
    """
    tables: dict[int, Any] = getattr(image, "quantization", None) or {}
    if not tables or any(len(table) != 64 for table in tables.values()):
        return 0, 0
    content = b"".join(np.asarray(tables[number], "<u2").tobytes() for number in sorted(tables))
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    luma = np.asarray(tables[min(tables)], np.int64)
    return 1 + int(np.abs(_TABLES - luma).sum(axis=1).argmin()), digest


def _scaled_tables() -> NDArray[np.int64]:
    """Return the luminance tables of the qualities 1..100, int64 [100, 64] (`jpeg_quality_scaling`)."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = (np.asarray(_STANDARD_LUMA)[None] * scale[:, None] + 50) // 100
    return np.asarray(np.clip(tables, 1, 255), np.int64)


_TABLES = _scaled_tables()
