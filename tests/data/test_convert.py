"""Conversion of images that the exported model misreads, checked against Pillow."""

from __future__ import annotations

import io
import struct
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pillow_heif
import pytest
import tensorflow as tf
from helpers.image_kinds import HEIGHT, KINDS, ORIENTED, WIDTH, Pixels, animated, encoded, photo, tiff
from helpers.odd_pictures import (
    CONVERTED,
    FULL,
    bmp,
    gif,
    jpeg,
    jpeg_with_xmp,
    pages,
    png_of_imagemagick,
    png_with,
    raw_profile,
    with_segment,
)
from helpers.pillow_reference import assert_close, reference
from PIL import Image

from trainer.data.convert import prepare
from trainer.data.decode import decode_image
from trainer.data.formats import how_to_read, names_a_picture, picture_format
from trainer.data.header import reason_not_to_decode

PLENTY = 10**8


def heic(side: int = 64) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(photo()).resize((side, side))
    pillow_heif.from_pillow(image).save(buffer, quality=-1, chroma=444)
    return buffer.getvalue()


@pytest.fixture
def decoded() -> Callable[[bytes], Pixels]:
    return lambda data: decode_image(tf.constant(data)).numpy()


@pytest.mark.parametrize("kind", CONVERTED)
def test_converted_image_has_the_pixels_of_pillow(kind: str, decoded: Callable[[bytes], Pixels]) -> None:
    make, name, tolerance = CONVERTED[kind]
    prepared = prepare(make(), PLENTY)
    assert (prepared.reason, prepared.converted) == (None, name)
    assert_close(decoded(prepared.data), reference(make()), tolerance)


@pytest.mark.parametrize(
    "kind", [kind for kind, (_, name, _) in CONVERTED.items() if "orientation" not in name]
)
def test_model_rejects_images_that_need_conversion(kind: str, decoded: Callable[[bytes], Pixels]) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoded(CONVERTED[kind][0]())


def test_heic_is_converted_if_its_plugin_is_installed(
    decoded: Callable[[bytes], Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = heic()
    prepared = prepare(data, PLENTY)
    assert (prepared.reason, prepared.converted) == (None, "HEIC")
    expected = np.asarray(pillow_heif.HeifImageFile(io.BytesIO(data)).convert("RGB"))
    assert_close(decoded(prepared.data), expected, 0)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert prepare(data, PLENTY).reason == "unsupported format: HEIC"


def test_images_that_the_decoder_supports_are_unchanged() -> None:
    direct = [make() for make, _ in KINDS.values()]
    direct += [make(tiff(6)) for make in ORIENTED.values()]
    # If both EXIF and XMP have an orientation, EXIF takes precedence, as in Pillow.
    direct += [jpeg_with_xmp(tiff(1)), gif(FULL), gif(FULL, colours=2)]
    for data in direct:
        prepared = prepare(data, PLENTY)
        assert (prepared.data, prepared.reason, prepared.converted) == (data, None, "")


def test_bytes_between_the_segments_of_a_jpeg_are_skipped(decoded: Callable[[bytes], Pixels]) -> None:
    data = jpeg()
    filled = data[:20] + b"\0" * 4 + data[20:]
    assert prepare(filled, PLENTY) == (filled, None, "")
    np.testing.assert_array_equal(decoded(filled), reference(data))
    turned = with_segment(data, b"Exif\0\0" + tiff(6))
    behind = turned[:20] + b"\0\1\0" + turned[20:]
    np.testing.assert_array_equal(decoded(behind), reference(turned))


def test_exif_in_a_png_is_found_under_both_profile_names(decoded: Callable[[bytes], Pixels]) -> None:
    for packed in (True, False):
        prepared = prepare(png_of_imagemagick("APP1", packed=packed), PLENTY)
        np.testing.assert_array_equal(decoded(prepared.data), reference(png_of_imagemagick()))


def test_jpeg_with_orientation_in_xmp_is_not_reencoded() -> None:
    prepared = prepare(jpeg_with_xmp(), PLENTY)
    assert picture_format(prepared.data) == "JPEG"
    assert len(prepared.data) - len(jpeg_with_xmp()) < 64


def test_damaged_metadata_means_no_rotation(decoded: Callable[[bytes], Pixels]) -> None:
    text = raw_profile("exif", b"Exif\0\0" + tiff(6))
    for body in (text[:40], text.replace(b"4", b"x"), b"", b"\n\n\n"):
        for kind, between in ((b"tEXt", b"\0"), (b"zTXt", b"\0\0")):
            data = png_with(kind, b"Raw profile type exif" + between + body)
            assert decoded(prepare(data, PLENTY).data).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("kind", ["tiff", "gif with a clear colour", "bmp 565", "avif", "jpeg 2000", "heic"])
def test_conversion_rejects_too_large_and_truncated_files(kind: str) -> None:
    data = heic() if kind == "heic" else CONVERTED[kind][0]()
    width, height = (64, 64) if kind == "heic" else (WIDTH, HEIGHT)
    assert f"declares {width} x {height} pixels" in str(prepare(data, width * height - 1).reason)
    assert prepare(data, width * height).reason is None
    for length in (len(data) // 3, len(data) // 2, len(data) * 3 // 4):
        assert prepare(data[:length], PLENTY).reason


def test_damaged_bytes_give_a_reason_and_raise_no_error() -> None:
    rng = np.random.default_rng(0)
    seeds = [make() for make, _, _ in CONVERTED.values()] + [heic(), animated("GIF"), jpeg()]
    for number in range(600):
        data = bytearray(seeds[number % len(seeds)])
        for at in rng.integers(0, min(len(data), 120), 3):
            data[at] = rng.integers(256)
        how_to_read(bytes(data))
        prepare(bytes(data), 10**5)
        reason_not_to_decode(bytes(data), 10**5)


def test_float_pixels_are_rejected() -> None:
    floats = encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF")
    assert "pixels of mode F are not supported" in str(prepare(floats, PLENTY).reason)


def brand(name: bytes, *others: bytes) -> bytes:
    return struct.pack(">I", 16 + 4 * len(others)) + b"ftyp" + name + b"\0\0\0\0" + b"".join(others) + b"mdat"


def raw(*entries: tuple[int, int]) -> bytes:
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0" * 8


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (brand(b"heic", b"mif1"), "HEIC"),
        (brand(b"mif1", b"miaf", b"heic"), "HEIC"),
        (brand(b"mif1", b"avif"), "AVIF"),
        (brand(b"crx "), "raw photo"),
        (brand(b"isom", b"mp41"), None),
        (brand(b"qt  "), None),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b'<?xml version="1.0"?>\n<!-- x -->\n<svg width="3">', "SVG"),
        (b'<?xml version="1.0"?><annotation><folder/>', None),
        (b"II*\0\x10\0\0\0CR\2\0", "raw photo"),
        (raw((0xFE, 1), (0x14A, 99)), "raw photo"),
        (raw((0xFE, 0), (0xC612, 0x104)), "raw photo"),
        (raw((0xFE, 1)), "TIFF"),
        (raw(), "TIFF"),
        (b"BM for short: the best mailbox", None),
        (bmp(24), "BMP"),
        (b"P6\n# made\n3 2\n255\n", "PNM"),
        (b"P6 is a processor", None),
        (b'{"a": 1}', None),
        (b"", None),
    ],
)
def test_format_is_detected_from_the_first_bytes(start: bytes, name: str | None) -> None:
    assert picture_format(start) == name


@pytest.mark.parametrize(
    ("name", "is_picture"),
    [
        *[(name, True) for name in ("a.jfif", "a.JPG_large", "b.jpg?w=300", "c.jpg.1", "d.HEIC", "e.tif")],
        *[(name, False) for name in ("a.jpg.json", "a.txt", "jpg", "a.jpg.xml", "a.tar", "notes.1")],
    ],
)
def test_image_names_are_detected_by_their_extension(name: str, is_picture: bool) -> None:
    assert names_a_picture(name) is is_picture


def test_pages_after_the_first_are_not_read() -> None:
    assert prepare(pages(), WIDTH * HEIGHT).reason is None


def test_warnings_of_pillow_are_suppressed() -> None:
    one, two = (struct.pack("<HHI", 284, 3, count) for count in (1, 2))
    doubtful = CONVERTED["tiff"][0]().replace(one, two)
    with pytest.warns(UserWarning, match="too many entries"):
        Image.open(io.BytesIO(doubtful)).load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(doubtful, PLENTY).converted == "TIFF"
