"""Hand-made images that TensorFlow rejects or reads differently from Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from helpers.image_kinds import HEIGHT, WIDTH, animated, encoded, photo, tiff, with_palette

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
FULL, PARTIAL = (0, 0, WIDTH, HEIGHT), (3, 2, 10, 8)


def lossless_jpeg() -> bytes:
    """Return a grey lossless JPEG (ITU T.81, annex H): predictor 1, one Huffman code of 4 bits a category."""
    grey = photo()[..., 0].astype(int)
    before = np.empty_like(grey)
    before[:, 1:], before[1:, 0], before[0, 0] = grey[:, :-1], grey[:-1, 0], 128
    bits = ""
    for difference in (grey - before).ravel().tolist():
        size = abs(difference).bit_length()
        value = difference if difference > 0 else difference + (1 << size) - 1
        bits += f"{size:04b}" + (f"{value:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    coded = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    frame = struct.pack(">BHHBBBB", 8, HEIGHT, WIDTH, 1, 1, 0x11, 0)
    table = bytes([0, 0, 0, 0, 10, *[0] * 12, *range(10)])
    scan = bytes([1, 1, 0, 1, 0, 0])
    parts = segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, scan)
    return b"\xff\xd8" + parts + coded + b"\xff\xd9"


def with_segment(jpeg: bytes, body: bytes) -> bytes:
    """Insert an APP1 segment after the JFIF segment."""
    return jpeg[:20] + struct.pack(">BBH", 0xFF, 0xE1, len(body) + 2) + body + jpeg[20:]


def jpeg() -> bytes:
    return encoded(Image.fromarray(photo()), "JPEG", subsampling=0)


def jpeg_with_xmp(exif: bytes = b"") -> bytes:
    data = with_segment(jpeg(), b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    return with_segment(data, b"Exif\0\0" + exif) if exif else data


def png_with(kind: bytes, body: bytes) -> bytes:
    """Return a PNG with an additional chunk before its pixels."""
    data = encoded(Image.fromarray(photo()), "PNG")
    return data[:33] + struct.pack(">I", len(body)) + kind + body + struct.pack(
        ">I", zlib.crc32(kind + body)
    ) + data[33:]  # fmt: skip


def raw_profile(name: str, exif: bytes) -> bytes:
    """Return EXIF as ImageMagick writes it: name, length, then hex digits in lines of 72."""
    digits = exif.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return f"\n{name}\n{len(exif):8d}\n{lines}\n".encode()


def png_of_imagemagick(name: str = "exif", exif: bytes = b"Exif\0\0" + tiff(6), packed: bool = True) -> bytes:
    key, text = b"Raw profile type " + name.encode() + b"\0", raw_profile(name, exif)
    return png_with(b"zTXt", key + b"\0" + zlib.compress(text)) if packed else png_with(b"tEXt", key + text)


def png_with_xmp(packed: bool = False) -> bytes:
    text = zlib.compress(XMP) if packed else XMP
    return png_with(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([packed, 0]) + b"\0\0" + text)


def gif(
    box: tuple[int, int, int, int], clear: int | None = None, colours: int = 16, background: int = 5
) -> bytes:
    """Return a hand-written GIF with one frame at `box` on the canvas; Pillow compresses the pixels."""
    rng = np.random.default_rng(5)
    left, top, width, height = box
    palette = rng.integers(0, 256, (colours, 3), np.uint8)
    image = Image.fromarray(rng.integers(0, colours, (height, width), np.uint8), "P")
    image.putpalette(palette.tobytes())
    whole = encoded(image, "GIF", optimize=False)
    size = int(np.log2(colours)) - 1
    pixels = whole[whole.index(b"\x2c\0\0\0\0") + 9 :]
    start = 1 + (3 << (pixels[0] & 7) + 1 if pixels[0] & 0x80 else 0)
    screen = b"GIF89a" + struct.pack("<HHBBB", WIDTH, HEIGHT, 0xF0 | size, background, 0)
    control = b"" if clear is None else struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 1, 0, clear, 0)
    frame = struct.pack("<BHHHHB", 0x2C, left, top, width, height, 0)
    return screen + palette.tobytes() + control + frame + pixels[start:]


def gif_without_colours() -> bytes:
    data = gif(FULL)
    return data[:10] + bytes([data[10] & 0x7F]) + data[11:13] + data[13 + 48 :]


def bmp(
    bits: int, masks: tuple[int, ...] = (), header_bytes: int = 40, compression: int | None = None,
    rows: bytes | None = None,
) -> bytes:  # fmt: skip
    """Return a BMP with random pixels, and any header and colour masks."""
    rng = np.random.default_rng(bits)
    palette = rng.integers(0, 256, (1 << bits if bits <= 8 else 0, 4), np.uint8).tobytes()
    size = (WIDTH * bits + 31) // 32 * 4 * HEIGHT
    pixels = rows if rows is not None else rng.integers(0, 256, size, np.uint8).tobytes()
    how = compression if compression is not None else 3 if masks else 0
    core = struct.pack("<IiiHHIIiiII", header_bytes, WIDTH, HEIGHT, 1, bits, how, len(pixels), 0, 0, 0, 0)
    colours = struct.pack(f"<{len(masks)}I", *masks)
    inside = (core + colours).ljust(header_bytes, b"\0")
    start = 14 + len(inside) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + inside + palette + pixels


def run_length() -> bytes:
    """Return the rows of an RLE8 bitmap: a run, some literal pixels, the end of the line."""
    literal = bytes([0, 6, 1, 2, 3, 4, 5, 6])
    rows = [bytes([WIDTH - 6, 7 + row]) + literal + b"\0\0" for row in range(HEIGHT)]
    return b"".join(rows) + b"\0\1"


def cat_of(kind: str, **options: object) -> bytes:
    return encoded(Image.fromarray(photo()), kind, **options)


def ppm(maximum: int = 255) -> bytes:
    kind = ">u2" if maximum > 255 else "u1"
    pixels = (photo()[..., 0].astype(int) * maximum // 255).astype(kind)
    return b"P5\n# by hand\n%d %d\n%d\n" % (WIDTH, HEIGHT, maximum) + pixels.tobytes()


def oriented_tiff() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return cat_of("TIFF", exif=exif, compression="tiff_lzw")


def pages() -> bytes:
    others = [Image.fromarray(photo(seed=seed)) for seed in (1, 2)]
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


CONVERTED: dict[str, tuple[Callable[[], bytes], str, int]] = {
    # name: (function that returns the bytes, reported format, largest difference from Pillow's pixels)
    "tiff": (lambda: cat_of("TIFF"), "TIFF", 0),
    "tiff of several pages": (pages, "TIFF", 0),
    "tiff turned": (oriented_tiff, "TIFF", 0),
    "tiff with alpha": (lambda: encoded(Image.fromarray(photo(4)), "TIFF"), "TIFF", 1),
    "tiff grey 16 bits": (
        lambda: encoded(Image.fromarray(photo()[..., 0].astype(np.uint16) * 257 + 90), "TIFF"),
        "TIFF",
        0,
    ),
    "tiff cmyk": (lambda: encoded(Image.fromarray(photo()).convert("CMYK"), "TIFF"), "TIFF", 0),
    "tiff palette": (lambda: encoded(with_palette(), "TIFF"), "TIFF", 0),
    "avif": (lambda: cat_of("AVIF"), "AVIF", 0),
    "jpeg 2000": (lambda: cat_of("JPEG2000"), "JPEG 2000", 0),
    "ppm": (lambda: cat_of("PPM"), "PNM", 0),
    "pgm 16 bits": (lambda: ppm(65535), "PNM", 0),
    "jpeg lossless": (lossless_jpeg, "lossless JPEG", 0),
    "jpeg turned by xmp": (jpeg_with_xmp, "JPEG with orientation in XMP", 0),
    "jpeg turned by xmp beside other exif": (
        lambda: jpeg_with_xmp(tiff(6).replace(b"\x12\x01", b"\x13\x01")),
        "JPEG with orientation in XMP",
        0,
    ),
    "png turned by xmp": (png_with_xmp, "PNG with orientation in text", 0),
    "png turned by packed xmp": (lambda: png_with_xmp(packed=True), "PNG with orientation in text", 0),
    "png of imagemagick": (png_of_imagemagick, "PNG with orientation in text", 0),
    "png of imagemagick, not packed": (
        lambda: png_of_imagemagick(packed=False),
        "PNG with orientation in text",
        0,
    ),
    "webp turned by xmp": (
        lambda: cat_of("WEBP", lossless=True, xmp=XMP),
        "WebP with orientation in XMP",
        0,
    ),
    "webp animated": (lambda: animated("WEBP"), "animated WebP", 2),
    "gif with a clear colour": (lambda: gif(FULL, clear=3), "GIF with transparency", 0),
    "gif of a part of its canvas": (lambda: gif(PARTIAL), "GIF with a partial frame", 0),
    "gif of a clear part": (lambda: gif(PARTIAL, clear=3), "GIF with a partial frame", 0),
    "gif without colours": (gif_without_colours, "GIF of an unusual form", 0),
    "gif beyond its canvas": (lambda: gif((5, 4, WIDTH, HEIGHT)), "GIF with a partial frame", 0),
    "bmp 16 bits": (lambda: bmp(16), "16-bit BMP", 0),
    "bmp 565": (lambda: bmp(16, (0xF800, 0x7E0, 0x1F)), "16-bit BMP", 0),
    "bmp rle": (lambda: bmp(8, compression=1, rows=run_length()), "compressed BMP", 0),
    "bmp with an alpha mask": (
        lambda: bmp(32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 108),
        "BMP with alpha",
        1,
    ),
    "bmp in another order": (
        lambda: bmp(32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000), 124),
        "BMP with alpha",
        1,
    ),
}
