"""Pictures that the exported model does not read, converted when they are read.

In: the bytes of a file. Out: bytes that the model's own decoder reads, or why the file can't be used.
Pillow decodes what TensorFlow does not, turned upright and with alpha; the result is encoded losslessly as
PNG and decoded like every other picture. A picture whose orientation is stored where the model does not look
for it gets an EXIF block and is not decoded here at all.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.data.header import declared_size, image_kind, reason_not_to_decode, reason_of_size
from trainer.data.reading import LOSSLESS, Route, how_to_read

if TYPE_CHECKING:
    from PIL import Image

LARGE_PIXELS = 12_000_000
"""Unpacked, a larger image takes so much memory that only one at a time is."""
UNSUPPORTED = "unsupported format"
"""How the reason begins for a picture of a format that can't be read here; the format follows."""
_BITS_PER_SAMPLE = 258
_NOISY = r"PIL\.|pillow_heif"
_one_large = threading.Lock()


class Prepared(NamedTuple):
    """Bytes passed to the decoder."""

    data: bytes
    reason: str | None
    """Why the file can't be used; None if nothing is known against it."""
    converted: str = ""
    """From which format; empty if `data` are the file's own bytes."""

    @property
    def pixels(self) -> int:
        """How many pixels the header declares, 0 if none."""
        width, height = declared_size(self.data) or (0, 0)
        return width * height


def prepare(data: bytes, max_pixels: int, compress_level: int = 1) -> Prepared:
    """Return what is to be decoded of a file's bytes; a conversion is packed as zlib's `compress_level` says.

    Images that declare more than `max_pixels` are not decoded. Whether bytes that need no conversion are
    damaged shows only when they are decoded.
    """
    route = how_to_read(data)
    if route.way == "refuse":
        return Prepared(data, f"{UNSUPPORTED}: {route.format}")
    if route.way == "convert":
        return _converted(data, route, max_pixels, compress_level)
    reason = reason_not_to_decode(data, max_pixels)
    if route.way == "direct" or reason is not None:
        return Prepared(data, reason)
    return Prepared(_with_orientation(data, route.orientation), None, route.format)


def _with_orientation(data: bytes, orientation: int) -> bytes:
    """Return a JPEG or PNG with an EXIF block of nothing but an orientation, before any other."""
    exif = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    if image_kind(data) == "jpeg":
        body = b"Exif\0\0" + exif
        return data[:2] + struct.pack(">BBH", 0xFF, 0xE1, len(body) + 2) + body + data[2:]
    checksum = zlib.crc32(b"eXIf" + exif)
    chunk = struct.pack(">I4s", len(exif), b"eXIf") + exif + struct.pack(">I", checksum)
    end = 8 + 12 + struct.unpack_from(">I", data, 8)[0]  # of the first chunk, IHDR
    return data[:end] + chunk + data[end:]


def _converted(data: bytes, route: Route, max_pixels: int, compress_level: int) -> Prepared:
    _silence()
    try:
        with _opened(data, route.format) as image:
            width, height = image.size
            if (reason := reason_of_size(width, height, max_pixels)) is not None:
                return Prepared(data, reason)
            with _one_large if width * height > LARGE_PIXELS else nullcontext():
                return Prepared(_as_png(_upright(image), compress_level), None, route.format)
    except MemoryError:
        raise
    except Exception as error:
        # Damaged bytes make the plugins raise errors of every kind, Pillow's own warnings among them.
        text = str(error) or type(error).__name__
        return Prepared(data, f"damaged: the {route.format} can't be decoded ({text.splitlines()[0][:100]})")


def _silence() -> None:
    """Keep what Pillow warns of damaged metadata and large images off the screen.

    Not for a while only, which would change what all threads share, back and forth.
    """
    if not any(getattr(module, "pattern", None) == _NOISY for _, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_NOISY)


def _opened(data: bytes, name: str) -> Image.Image:
    """Open the bytes with the plugin of their format. Raises whatever the plugin raises.

    Not by `Image.open`, which would try all of them and judge the size by a limit of its own.
    """
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        Jpeg2KImagePlugin,
        JpegImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    if name == "HEIC":
        import pillow_heif

        return pillow_heif.HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    plugins: dict[str, Callable[[io.BytesIO], Any]] = {
        "AVIF": AvifImagePlugin.AvifImageFile,
        "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
        "PNM": PpmImagePlugin.PpmImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        LOSSLESS: JpegImagePlugin.JpegImageFile,
        "gif": GifImagePlugin.GifImageFile,
        "bmp": BmpImagePlugin.BmpImageFile,
        "webp": WebPImagePlugin.WebPImageFile,
    }
    return plugins[name if name in plugins else image_kind(data) or ""](io.BytesIO(data))


def _upright(image: Image.Image) -> Image.Image:
    """Decode the first frame; return it turned upright, as RGB or RGBA with 8 bits."""
    from PIL import ImageOps

    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = _of_8_bits(image)
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 bits of 16, or of as many as a TIFF has. Raises ValueError for other numbers."""
    import numpy as np
    from PIL import Image

    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")):
        raise ValueError(f"its pixels are numbers of mode {image.mode}, not brightnesses")
    tags = getattr(image, "tag_v2", {})
    bits = int((tags.get(_BITS_PER_SAMPLE) or (16,))[0])
    return Image.fromarray((np.asarray(image).astype(np.int32) >> (bits - 8)).astype(np.uint8))


def _as_png(image: Image.Image, compress_level: int) -> bytes:
    image.info = {}  # no colour profile, no transparency, no EXIF: they were applied, or don't count
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()
