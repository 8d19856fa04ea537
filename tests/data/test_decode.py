"""Image decoding in graph operations: agreement with Pillow, and errors on damaged data."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.image_kinds import HEIGHT, KINDS, ORIENTED, WIDTH, Pixels, animated, bitmap, encoded, photo, tiff
from helpers.pillow_reference import assert_close, reference
from PIL import Image

from trainer.data.decode import decode_and_resize, decode_image, resize_image
from trainer.spec import PixelFormat

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled() -> Callable[[bytes], Pixels]:
    function = tf.function(decode_image, input_signature=[tf.TensorSpec([], tf.string)])
    return lambda data: function(data).numpy()


def in_pipeline(data: list[bytes]) -> list[Pixels]:
    return list(tf.data.Dataset.from_tensor_slices(data).map(decode_image).as_numpy_iterator())


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_format_has_the_pixels_of_pillow(kind: str, compiled: Callable[[bytes], Pixels]) -> None:
    make, tolerance = KINDS[kind]
    data = make()
    assert_close(compiled(data), reference(data), tolerance)


def test_eager_and_pipeline_and_compiled_function_agree(compiled: Callable[[bytes], Pixels]) -> None:
    data = [make() for make, _ in KINDS.values()]
    for one, piped in zip(data, in_pipeline(data), strict=True):
        np.testing.assert_array_equal(piped, compiled(one))
    for one in data[::4]:
        np.testing.assert_array_equal(decode_image(tf.constant(one)), compiled(one))


@pytest.mark.parametrize("kind", ORIENTED)
def test_all_orientations_are_applied(kind: str, compiled: Callable[[bytes], Pixels]) -> None:
    data = [ORIENTED[kind](tiff(turn, order)) for turn in range(1, 9) for order in "<>"]
    for one, piped in zip(data, in_pipeline(data), strict=True):
        assert_close(compiled(one), reference(one), 0)
        np.testing.assert_array_equal(piped, compiled(one))
        np.testing.assert_array_equal(decode_image(tf.constant(one)), piped)
    assert not np.array_equal(compiled(data[4]), compiled(data[0]))


def test_exif_after_other_segments_is_found(compiled: Callable[[bytes], Pixels]) -> None:
    data = encoded(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0" + tiff(6), icc_profile=b"x" * 90_000)
    jfif = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0" + b"\xff\xfe\0\x0bExif\0\0II*" + b"\xff\xff"
    moved = data[:2] + jfif + data[2:].replace(b"\xff\xe0\0\x10JFIF", b"\xff\xec\0\x10JFIF", 1)
    assert compiled(moved).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize("kind", ORIENTED)
def test_damaged_exif_means_no_rotation(kind: str, compiled: Callable[[bytes], Pixels]) -> None:
    good, rng = tiff(6), np.random.default_rng(0)
    damaged = [
        b"II*\0",
        b"",
        good[:20],
        good[:8] + b"\xff\xff" + good[10:],
        b"XX" + good[2:],
        tiff(0),
        tiff(9),
    ]
    damaged += [good[:4] + struct.pack("<I", at) + good[8:] for at in (0, 60, 10_000, 2**32 - 1)]
    damaged += [rng.bytes(40) for _ in range(10)]
    for exif in damaged:
        image = compiled(ORIENTED[kind](exif))
        assert image.shape[2] == 3
    for exif in (good[:20], tiff(0), tiff(9), b"XX" + good[2:]):
        assert compiled(ORIENTED[kind](exif)).shape == (HEIGHT, WIDTH, 3)


BROKEN = {
    "empty": b"",
    "text": b"hello, this is not an image",
    "animated webp": animated("WEBP"),
    "bmp with 16 bits": bitmap(16),
    "bmp compressed": bitmap(8, compression=1),
    "bmp truncated": bitmap(24)[:-1],
    "tiff": encoded(Image.fromarray(photo()), "TIFF"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bytes_that_are_not_an_image_are_an_error(kind: str, compiled: Callable[[bytes], Pixels]) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        compiled(BROKEN[kind])
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(tf.constant(BROKEN[kind]))


@pytest.mark.parametrize("kind", ["jpeg", "jpeg progressive", "png", "webp", "webp lossless", "bmp", "gif"])
def test_truncated_image_is_an_error(kind: str, compiled: Callable[[bytes], Pixels]) -> None:
    data = KINDS[kind][0]()
    for length in (3, 12, 30, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(tf.errors.InvalidArgumentError):
            compiled(data[:length])


FUZZ = """
import random, sys
import tensorflow as tf
sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + "/tests")
from trainer.data.decode import decode_image
import helpers.image_kinds as t
decode = tf.function(decode_image, input_signature=[tf.TensorSpec([], tf.string)])
seeds = [make() for make, _ in t.KINDS.values()] + [make(t.tiff(6)) for make in t.ORIENTED.values()]
seeds += [t.animated("WEBP")]
chance = random.Random(int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice([1, 1, 2, 8])):
        where = chance.randrange(min(len(data), chance.choice([40, 100, 100_000])))
        flipped = data[where] ^ (1 << chance.randrange(8))
        data[where] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256), flipped])
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]
    try:
        assert decode(bytes(data)).shape[2] == 3
    except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError):
        pass
print("survived")
"""


def test_damaged_images_do_not_crash_the_process() -> None:
    command = [sys.executable, "-c", FUZZ, str(ROOT), "1", "600"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.stdout.strip() == "survived", ended.stderr[-2000:]


def resized(image: Pixels, size: int, resize: str, interpolation: str, crop_fraction: float = 1.0) -> Pixels:
    form = PixelFormat(size, size, resize, interpolation, crop_fraction)
    function = tf.function(lambda pixels: resize_image(pixels, form))
    eager = resize_image(tf.constant(image), form).numpy()
    np.testing.assert_array_equal(function(image), eager)
    return np.asarray(eager)


@pytest.mark.parametrize(("interpolation", "tolerance"), [("bilinear", 1), ("bicubic", 1), ("nearest", 0)])
@pytest.mark.parametrize("size", [8, 13, 40])
def test_stretched_image_equals_that_of_pillow(interpolation: str, tolerance: int, size: int) -> None:
    image = photo()
    expected = np.asarray(
        Image.fromarray(image).resize((size, size), Image.Resampling[interpolation.upper()])
    )
    actual = resized(image, size, "stretch", interpolation)
    assert_close(actual, expected, tolerance)
    # Rounded to nearest, not down, so there is no bias.
    assert abs(np.mean(actual.astype(int) - expected)) < 0.1


def test_cropped_image_is_the_central_square() -> None:
    image = photo()
    np.testing.assert_array_equal(resized(image, HEIGHT, "crop", "nearest"), image[:, 4 : 4 + HEIGHT])
    turned = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(resized(turned, HEIGHT, "crop", "bilinear"), turned[4 : 4 + HEIGHT])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_fraction_equals_resize_and_centre_crop(interpolation: str) -> None:
    small = Image.fromarray(photo()).resize((320, 256), Image.Resampling.BICUBIC)
    usual = small.resize((80, 64), Image.Resampling[interpolation.upper()]).crop((12, 4, 68, 60))
    actual = resized(np.asarray(small), 56, "crop", interpolation, 0.875).astype(int)
    # At its border the usual method also reads pixels outside the crop.
    assert np.abs(actual - np.asarray(usual))[2:-2, 2:-2].max() <= 1
    assert np.abs(actual - np.asarray(usual)).mean() < 1


def test_padded_image_is_centred_on_black() -> None:
    image = np.maximum(photo(), 1)
    padded = resized(image, WIDTH, "pad", "nearest")
    np.testing.assert_array_equal(padded[4 : 4 + HEIGHT], image)
    assert padded[:4].max() == 0
    assert padded[4 + HEIGHT :].max() == 0
    assert resized(image[:1], 8, "pad", "bilinear").any(axis=(1, 2)).sum() == 1


def test_image_of_the_right_size_is_unchanged() -> None:
    image = photo()[:, :HEIGHT]
    for resize in ("stretch", "crop", "pad"):
        np.testing.assert_array_equal(resized(image, HEIGHT, resize, "bilinear"), image)


def test_orientation_is_applied_before_the_crop() -> None:
    data = ORIENTED["png"](tiff(6))
    form = PixelFormat(8, 8, "crop")
    expected = resize_image(tf.constant(reference(data)), form)
    np.testing.assert_array_equal(decode_and_resize(tf.constant(data), form), expected)


def large(width: int = 803, height: int = 605, mode: str = "RGB", **options: object) -> bytes:
    """Return a JPEG of smooth shapes that is much larger than the target sizes."""
    small = Image.fromarray(np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8))
    return encoded(small.resize((width, height), Image.Resampling.BICUBIC).convert(mode), "JPEG", **options)


def fully(data: bytes, size: int, *how: object) -> Pixels:
    return resize_image(decode_image(tf.constant(data)), PixelFormat(size, size, *how)).numpy()  # type: ignore[arg-type]


def reduced(data: bytes, size: int, *how: object) -> Pixels:
    return decode_and_resize(tf.constant(data), PixelFormat(size, size, *how)).numpy()  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(
    "kind", [{}, {"mode": "L"}, {"mode": "CMYK"}, {"progressive": True}, {"quality": 60, "subsampling": 0}]
)
def test_large_jpeg_decoded_at_reduced_size_is_nearly_the_same(kind: dict[str, object], resize: str) -> None:
    data = large(**kind)  # type: ignore[arg-type]
    for size in (75, 37, 18, 9):  # scaled to 1/2, 1/4, 1/8, and again 1/8, the smallest scale
        pixels, expected = reduced(data, size, resize).astype(int), fully(data, size, resize).astype(int)
        assert (pixels != expected).any(), "it is not reduced"
        assert np.abs(pixels - expected).mean() < 0.5


@pytest.mark.parametrize("how", [("stretch", "bicubic"), ("crop", "bicubic", 0.8), ("crop", "bilinear", 0.8)])
def test_reduced_decoding_works_with_every_filter_and_crop(how: tuple[object, ...]) -> None:
    data = large()
    for size in (60, 30, 15, 9):
        pixels, expected = reduced(data, size, *how).astype(int), fully(data, size, *how).astype(int)
        assert (pixels != expected).any(), "it is not reduced"
        assert np.abs(pixels - expected).mean() < 0.5
    # A crop of 0.8 has 484 of the 605 rows, less than 8 x 61.
    if how[0] == "crop":
        np.testing.assert_array_equal(reduced(data, 61, *how), fully(data, 61, *how))


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_reduced_jpeg_has_the_same_position_in_every_orientation(resize: str) -> None:
    # No side is divisible by 8: the excess pixels are at the end, or at the start if mirrored.
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = large(quality=95, exif=exif)
        for size in (75, 37):
            pixels, expected = reduced(data, size, resize).astype(int), fully(data, size, resize).astype(int)
            assert np.abs(pixels - expected).mean() < 0.5, (orientation, size)


def test_jpeg_of_one_row_keeps_its_pixels_when_padded() -> None:
    line = large(5001, 3, quality=95)
    np.testing.assert_array_equal(reduced(line, 16, "pad"), fully(line, 16, "pad"))
    band = large(5001, 43, quality=95)
    pixels, expected = reduced(band, 16, "pad").astype(int), fully(band, 16, "pad").astype(int)
    assert pixels.any(axis=(1, 2)).sum() == expected.any(axis=(1, 2)).sum() == 1
    assert np.abs(pixels - expected).max() <= 16


def test_jpeg_below_eight_times_the_size_is_not_reduced() -> None:
    data = large()
    for resize, size in (("crop", 76), ("stretch", 76), ("pad", 101)):
        np.testing.assert_array_equal(reduced(data, size, resize), fully(data, size, resize))
    # Nearest-neighbour sampling reads pixels of the full-size image.
    nearest = fully(data, 16, "crop", "nearest")
    np.testing.assert_array_equal(reduced(data, 16, "crop", "nearest"), nearest)


def test_damaged_jpeg_is_an_error_at_reduced_size() -> None:
    data = large()
    for damaged in (data[: len(data) // 2], data[:30], b"\xff\xd8\xff" + b"x" * 50):
        with pytest.raises(tf.errors.InvalidArgumentError):
            reduced(damaged, 16, "crop")
