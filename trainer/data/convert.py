"""Conversion of image formats that the exported model cannot decode.

The contents of a file are converted to a format that the model's decoder supports, or a reason is returned
why the file cannot be used. Pillow decodes the formats that TensorFlow does not support, applies the
orientation and keeps alpha. The result is encoded losslessly as PNG and decoded like any other image. An
image with its orientation in metadata that the model ignores gets an EXIF block and is not re-encoded.
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

import numpy as np
from numpy.typing import NDArray

from trainer.data.formats import LOSSLESS, Route, how_to_read
from trainer.data.header import declared_size, image_kind, reason_not_to_decode, reason_of_size

if TYPE_CHECKING:
    from PIL import Image


LARGE_PIXELS = 12_000_000
"""Larger images are decoded one at a time, because of the memory that they need."""
UNSUPPORTED = "unsupported format"
"""Prefix of the rejection reason of an image in an unsupported format; the format follows."""
_BITS_PER_SAMPLE = 258
_NOISY = r"PIL\.|pillow_heif"
_CIFAR_SIDE = 32
_NO_LIMIT = 1 << 62
_FILE_COMPRESS_LEVEL = 6
"""zlib's default, because files are stored permanently."""
_one_large = threading.Lock()


class Prepared(NamedTuple):
    """Input of the decoder."""

    data: bytes
    reason: str | None
    """Why the file cannot be used; None if no problem has been detected."""
    converted: str = ""
    """The original format; empty if `data` is the unchanged file."""

    @property
    def pixels(self) -> int:
        """Number of pixels that the header declares, 0 if it declares none."""
        width, height = declared_size(self.data) or (0, 0)
        return width * height


def prepare(data: bytes, max_pixels: int, compress_level: int = 1) -> Prepared:
    """Return the decoder input for the contents of a file.

    `compress_level` is the zlib level for converted images. Images that declare more than `max_pixels` are
    not decoded. Damage in images that need no conversion is only detected when they are decoded.
    """
    route = how_to_read(data)
    if route.way == "refuse":
        return Prepared(data, f"{UNSUPPORTED}: {route.format}")
    if route.way == "convert":
        return _convert(data, route, max_pixels, compress_level)
    reason = reason_not_to_decode(data, max_pixels)
    if route.way == "direct" or reason is not None:
        return Prepared(data, reason)
    return Prepared(_add_orientation(data, route.orientation), None, route.format)


def _add_orientation(data: bytes, orientation: int) -> bytes:
    """Insert an EXIF block that holds only an orientation into a JPEG or PNG, before any other EXIF block."""
    exif = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    if image_kind(data) == "jpeg":
        body = b"Exif\0\0" + exif
        return data[:2] + struct.pack(">BBH", 0xFF, 0xE1, len(body) + 2) + body + data[2:]
    checksum = zlib.crc32(b"eXIf" + exif)
    chunk = struct.pack(">I4s", len(exif), b"eXIf") + exif + struct.pack(">I", checksum)
    end = 8 + 12 + struct.unpack_from(">I", data, 8)[0]  # of the first chunk, IHDR
    return data[:end] + chunk + data[end:]


def _convert(data: bytes, route: Route, max_pixels: int, compress_level: int) -> Prepared:
    suppress_warnings()
    try:
        with open_with_plugin(data, route.format) as image:
            width, height = image.size
            if (reason := reason_of_size(width, height, max_pixels)) is not None:
                return Prepared(data, reason)
            with _one_large if width * height > LARGE_PIXELS else nullcontext():
                return Prepared(_encode_png(_decode_upright(image), compress_level), None, route.format)
    except MemoryError:
        raise
    except Exception as error:
        # On damaged bytes the plugins raise exceptions of any type, including Pillow's own warnings.
        text = str(error) or type(error).__name__
        return Prepared(data, f"damaged: the {route.format} cannot be decoded ({text.splitlines()[0][:100]})")


def suppress_warnings() -> None:
    """Suppress Pillow's warnings about damaged metadata and large images.

    The filter is permanent: `warnings.catch_warnings` would switch state that all threads share.
    """
    if not any(getattr(module, "pattern", None) == _NOISY for _, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_NOISY)


def open_with_plugin(data: bytes, name: str) -> Image.Image:
    """Open the bytes with the plugin for their format. Raises whatever the plugin raises.

    name: format of the route, as of `how_to_read`; "" for an image that needs no conversion. `Image.open` is
    not used: it tries all plugins and applies its own size limit.
    """
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        Jpeg2KImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
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
        "jpeg": JpegImagePlugin.JpegImageFile,
        "png": PngImagePlugin.PngImageFile,
        "gif": GifImagePlugin.GifImageFile,
        "bmp": BmpImagePlugin.BmpImageFile,
        "webp": WebPImagePlugin.WebPImageFile,
    }
    return plugins[name if name in plugins else image_kind(data) or ""](io.BytesIO(data))


def _decode_upright(image: Image.Image) -> Image.Image:
    """Decode the first frame, apply its orientation and convert it to RGB or RGBA with 8 bits."""
    from PIL import ImageOps

    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = reduce_to_8_bits(image)
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def reduce_to_8_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 bits of 16, or of a TIFF's bit depth. Raises ValueError for other pixel types."""
    import numpy as np
    from PIL import Image

    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")):
        raise ValueError(f"pixels of mode {image.mode} are not supported")
    tags = getattr(image, "tag_v2", {})
    bits = int((tags.get(_BITS_PER_SAMPLE) or (16,))[0])
    return Image.fromarray((np.asarray(image).astype(np.int32) >> (bits - 8)).astype(np.uint8))


def _encode_png(image: Image.Image, compress_level: int) -> bytes:
    image.info = {}  # Colour profile, transparency and EXIF are already applied or irrelevant.
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def as_file(data: bytes, encoding: str) -> bytes:
    """Return the bytes of an item with this `encoding` as an image file that the model's decoder supports.

    Raw records and images that need conversion are encoded losslessly as PNG; other files are returned
    unchanged.
    """
    if encoding == "image":
        return prepare(data, _NO_LIMIT, _FILE_COMPRESS_LEVEL).data
    import numpy as np
    import tensorflow as tf

    planes = np.frombuffer(data, np.uint8).reshape(3, _CIFAR_SIDE, _CIFAR_SIDE)
    return bytes(tf.io.encode_png(planes.transpose(1, 2, 0)).numpy())


def as_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert images, uint8 [..., channels], to RGB uint8 [..., 3]; alpha is blended onto white."""
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    if pixels.shape[-1] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.int32)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
