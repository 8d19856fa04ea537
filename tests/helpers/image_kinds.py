"""Small generated images in every supported format and orientation."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[Any]]
HEIGHT, WIDTH = 13, 21


def photo(channels: int = 3, seed: int = 0) -> Pixels:
    """Return smooth colours with slight noise, which lossy formats preserve closely."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [127 + 100 * np.sin(x / (5 + c) + y / (3 + c) + c) for c in range(channels)]
    noisy = np.stack(waves, axis=-1) + rng.normal(0, 3, (HEIGHT, WIDTH, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_palette() -> Image.Image:
    return Image.fromarray(photo()).quantize(16)


def png_of_16_bits() -> bytes:
    rows = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bitmap(bits: int, top_down: bool = False, tail: bytes = b"", compression: int = 0) -> bytes:
    """Return a hand-written BMP: random pixels, a palette of at most 200 colours, padded rows."""
    rng = np.random.default_rng(bits)
    colours = min(1 << bits, 200) if bits <= 8 else 0
    palette = rng.integers(0, 256, (colours, 4)).astype(np.uint8)
    row_bytes = (WIDTH * bits + 31) // 32 * 4
    rows = rng.integers(0, max(colours, 1) if bits == 8 else 256, (HEIGHT, row_bytes)).astype(np.uint8)
    height = -HEIGHT if top_down else HEIGHT
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, height, 1, bits, compression, 0, 0, 0, colours, 0)
    start = 14 + len(header) + palette.nbytes
    file_header = struct.pack("<2sIHHI", b"BM", start + rows.nbytes, 0, 0, start)
    return file_header + header + palette.tobytes() + rows.tobytes() + tail


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(photo(seed=seed)).resize((32, 32)) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def tiff(orientation: int, order: str = "<") -> bytes:
    """Return an EXIF block with a few entries around the orientation, in either byte order."""
    entries = [
        struct.pack(order + "HHII", 0x010F, 2, 6, 62),
        struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0),
        struct.pack(order + "HHII", 0x011A, 5, 1, 68),
        struct.pack(order + "HHIHH", 0x0128, 3, 1, 2, 0),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return (
        head + b"".join(entries) + struct.pack(order + "I", 0) + b"maker\0" + struct.pack(order + "II", 72, 1)
    )


KINDS: dict[str, tuple[Callable[[], bytes], int]] = {
    # name: (function that returns the bytes, largest difference from Pillow's pixels)
    "jpeg": (lambda: encoded(Image.fromarray(photo()), "JPEG"), 0),
    "jpeg 4:4:4": (lambda: encoded(Image.fromarray(photo()), "JPEG", subsampling=0), 0),
    "jpeg grey": (lambda: encoded(Image.fromarray(photo()).convert("L"), "JPEG"), 0),
    "jpeg cmyk": (lambda: encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG", quality=95), 1),
    "jpeg progressive": (lambda: encoded(Image.fromarray(photo()), "JPEG", progressive=True), 0),
    "png": (lambda: encoded(Image.fromarray(photo()), "PNG"), 0),
    "png grey": (lambda: encoded(Image.fromarray(photo()).convert("L"), "PNG"), 0),
    "png grey alpha": (lambda: encoded(Image.fromarray(photo(4)).convert("LA"), "PNG"), 1),
    "png alpha": (lambda: encoded(Image.fromarray(photo(4)), "PNG"), 1),
    "png palette": (lambda: encoded(with_palette(), "PNG"), 0),
    "png palette with a clear colour": (lambda: encoded(with_palette(), "PNG", transparency=3), 0),
    "png palette with alpha": (
        lambda: encoded(with_palette(), "PNG", transparency=bytes(range(0, 160, 10))),
        1,
    ),
    "png grey with a clear level": (
        lambda: encoded(Image.fromarray(photo()).convert("L"), "PNG", transparency=100),
        0,
    ),
    "png 1 bit": (lambda: encoded(Image.fromarray(photo()).convert("1"), "PNG"), 0),
    "png grey 16 bits": (
        lambda: encoded(Image.fromarray(photo()[..., 0].astype(np.uint16) * 257 + 90), "PNG"),
        0,
    ),
    "png 16 bits": (png_of_16_bits, 0),
    "webp": (lambda: encoded(Image.fromarray(photo()), "WEBP"), 1),
    "webp lossless": (lambda: encoded(Image.fromarray(photo()), "WEBP", lossless=True), 0),
    "webp alpha": (lambda: encoded(Image.fromarray(photo(4)), "WEBP"), 2),
    "webp lossless alpha": (lambda: encoded(Image.fromarray(photo(4)), "WEBP", lossless=True, exact=True), 1),
    "webp with metadata": (
        lambda: encoded(Image.fromarray(photo()), "WEBP", xmp=b"<x/>", icc_profile=b"icc"),
        1,
    ),
    "bmp": (lambda: encoded(Image.fromarray(photo()), "BMP"), 0),
    "bmp grey": (lambda: encoded(Image.fromarray(photo()).convert("L"), "BMP"), 0),
    "bmp palette": (lambda: encoded(with_palette(), "BMP"), 0),
    "bmp 1 bit": (lambda: bitmap(1), 0),
    "bmp 4 bits": (lambda: bitmap(4), 0),
    "bmp 8 bits": (lambda: bitmap(8), 0),
    "bmp 24 bits": (lambda: bitmap(24), 0),
    "bmp 32 bits": (lambda: bitmap(32), 0),
    "bmp top row first": (lambda: bitmap(8, top_down=True), 0),
    "bmp 24 bits top row first": (lambda: bitmap(24, top_down=True), 0),
    "bmp with bytes after its end": (lambda: bitmap(24, tail=b"\0\0"), 0),
    "gif": (lambda: encoded(Image.fromarray(photo()), "GIF"), 0),
    "gif animated": (lambda: animated("GIF"), 0),
}

ORIENTED = {
    "jpeg": lambda exif: encoded(Image.fromarray(photo()), "JPEG", subsampling=0, exif=b"Exif\0\0" + exif),
    "png": lambda exif: encoded(Image.fromarray(photo()), "PNG", exif=exif),
    "webp": lambda exif: encoded(Image.fromarray(photo()), "WEBP", lossless=True, exif=exif),
    "webp with the prefix": lambda exif: _with_prefix(
        encoded(Image.fromarray(photo()), "WEBP", lossless=True, exif=exif), exif
    ),
}


def _with_prefix(webp: bytes, exif: bytes) -> bytes:
    old = b"EXIF" + struct.pack("<I", len(exif)) + exif
    new = b"EXIF" + struct.pack("<I", len(exif) + 6) + b"Exif\0\0" + exif
    body = webp[8:].replace(old, new)
    return webp[:4] + struct.pack("<I", len(body)) + body
