"""Measures of drawn images in many formats, and of images that cannot be read."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from helpers.drawn_items import PLENTY, DrawnItem, draw_scene, encoded, measured
from helpers.image_kinds import KINDS, png_of_16_bits
from PIL import Image

from trainer.audit.measures import measure_images
from trainer.audit.residual import NOISE_NAMES
from trainer.data.progress import SilentProgress


def exif_of(**tags: Any) -> Image.Exif:
    exif = Image.Exif()
    for name, tag in (("make", 271), ("model", 272), ("orientation", 274), ("date", 306)):
        if name in tags:
            exif[tag] = tags[name]
    return exif


def test_measures_of_a_single_colour_are_exact() -> None:
    measures = measured([encoded(Image.new("RGB", (40, 30), (255, 0, 0)), "PNG")])
    assert (measures.width[0], measures.height[0], measures.format[0]) == (40, 30, "PNG")
    assert measures.colour[0].tolist() == [1, 0, 0]
    assert measures.brightness[0] == pytest.approx(76 / 255)
    assert (measures.contrast[0], measures.flat_share[0], measures.sharpness[0]) == (0, 1, 0)
    assert measures.border_share[0].tolist() == [1, 1, 1, 1]
    assert measures.border_colour[0].tolist() == [[1, 0, 0]] * 4


def test_contrast_is_the_standard_deviation_of_the_luma() -> None:
    image = Image.new("L", (20, 20))
    image.paste(255, (0, 0, 10, 20))
    measures = measured([encoded(image, "PNG")])
    assert (measures.brightness[0], measures.contrast[0], measures.flat_share[0]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("quality", [1, 20, 50, 75, 90, 95, 100])
def test_jpeg_quality_is_read_from_the_tables(quality: int) -> None:
    measures = measured([encoded(draw_scene(seed), quality=quality) for seed in range(2)])
    assert measures.jpeg_quality.tolist() == [quality, quality]
    other = measured([encoded(draw_scene(0), quality=60)])
    assert measures.jpeg_table[0] == measures.jpeg_table[1] != other.jpeg_table[0]


def test_formats_without_tables_have_no_jpeg_quality() -> None:
    measures = measured([encoded(draw_scene(0), kind) for kind in ("PNG", "WEBP", "TIFF", "GIF", "BMP")])
    assert measures.format.tolist() == ["PNG", "WebP", "TIFF", "GIF", "BMP"]
    assert measures.jpeg_quality.tolist() == measures.jpeg_table.tolist() == [0] * 5


def test_camera_and_date_are_read_from_exif() -> None:
    exif = exif_of(make="Canon", model="Canon EOS 80D", date="2024:05:17 13:45:10")
    measures = measured([encoded(draw_scene(0), exif=exif), encoded(draw_scene(0))])
    assert measures.camera.tolist() == ["Canon EOS 80D", ""]
    assert str(measures.taken[0]) == "2024-05-17T13:45:10"
    assert np.isnat(measures.taken[1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_measures_are_of_the_upright_image(kind: str) -> None:
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    image = draw_scene(3)
    turned = image.transpose(Image.Transpose.ROTATE_90)  # orientation 6 turns it back
    measures = measured(
        [encoded(image, kind, **options), encoded(turned, kind, exif=exif_of(orientation=6), **options)]
    )
    assert measures.orientation.tolist() == [1, 6]
    assert measures.width[0] == measures.width[1] == 96
    np.testing.assert_allclose(measures.colour[0], measures.colour[1], atol=0.01)
    np.testing.assert_allclose(measures.border_share[0], measures.border_share[1], atol=0.1)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40],
)
def test_damaged_exif_counts_as_missing(exif: bytes) -> None:
    measures = measured([encoded(draw_scene(0), exif=exif)])
    assert measures.is_readable[0]
    assert (measures.orientation[0], measures.camera[0]) == (1, "")


def test_exif_of_wrong_types_counts_as_missing() -> None:
    exif = exif_of(model="\0\x01 X\0", orientation=77, date="yesterday")
    measures = measured([encoded(draw_scene(0), exif=exif)])
    assert (measures.orientation[0], measures.camera[0]) == (1, "X")
    assert np.isnat(measures.taken[0])


@pytest.mark.parametrize("name", KINDS)
def test_every_supported_kind_of_image_is_measured(name: str) -> None:
    measures = measured([KINDS[name][0]()])
    assert measures.is_readable[0]
    assert 0 < measures.brightness[0] < 1
    assert (measures.width[0], measures.height[0]) == ((32, 32) if "animated" in name else (21, 13))


def test_16_bits_are_reduced_and_alpha_is_blended_onto_white() -> None:
    bright = Image.fromarray(np.full((20, 20), 51 * 257, np.uint16))
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    measures = measured([encoded(bright, "PNG"), encoded(clear, "PNG"), png_of_16_bits()])
    assert measures.brightness[:2].tolist() == pytest.approx([0.2, 1.0])
    assert measures.is_readable.all()


def test_records_of_cifar_have_the_measures_of_their_image() -> None:
    image = draw_scene(1, 32, 32)
    planes = np.asarray(image).transpose(2, 0, 1).tobytes()
    items = [DrawnItem("a", planes, "cifar"), DrawnItem("b", encoded(image, "PNG"))]
    measures = measure_images(items, PLENTY, SilentProgress())
    assert measures.format.tolist() == ["raw", "PNG"]
    for name in ("width", "colour", "sharpness", "noise", "border_colour"):
        values = getattr(measures, name)
        np.testing.assert_array_equal(values[0], values[1])


def test_unreadable_images_have_no_measures_and_raise_nothing() -> None:
    whole = encoded(draw_scene(0))
    large = encoded(Image.new("L", (2000, 2000)), "PNG")
    data = [
        whole,
        None,
        b"",
        b"not an image",
        whole[: len(whole) // 2],
        large,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
    ]
    items = [DrawnItem(str(number), contents) for number, contents in enumerate(data)]
    items += [DrawnItem("short", b"\0" * 100, "cifar")]
    measures = measure_images(items, 1_000_000, SilentProgress())
    assert measures.is_readable.tolist() == [True] + [False] * 7
    bad = measures.take(np.arange(1, 8))
    for name in ("width", "height", "brightness", "contrast", "sharpness", "noise", "colour", "border_share"):
        assert np.isnan(getattr(bad, name)).all(), name
    assert np.isnan(measures.file_bytes).tolist() == [False, True] + [False] * 6
    assert set(bad.format) | set(bad.camera) == {""}
    assert set(bad.jpeg_quality.tolist()) == {0}
    assert np.isnat(bad.taken).all()


def test_measures_are_in_the_order_of_the_items() -> None:
    images = [encoded(Image.new("L", (10 + number, 20)), "PNG") for number in range(100)]
    measures = measured(images, [f"train/cats/{number}.png" for number in range(100)])
    assert measures.width.tolist() == list(range(10, 110))
    assert measures.names[99] == "train/cats/99.png"
    assert set(measures.source) == {"train/cats"}


def test_no_images_give_empty_measures() -> None:
    measures = measured([])
    assert len(measures) == 0
    assert all(len(getattr(measures, field.name)) == 0 for field in fields(measures))


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (15, 15)])
def test_images_too_small_for_noise_statistics_are_measured(size: tuple[int, int]) -> None:
    measures = measured([encoded(Image.new("RGB", size, "red"), "PNG")])
    assert measures.is_readable[0]
    assert np.isnan(measures.noise[0]).all()


def test_noise_statistics_show_what_was_added() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((128, 128, 3), 128.0)
    noisy = np.clip(grey + rng.normal(0, 10, grey.shape), 0, 255).astype(np.uint8)
    spotted = grey.astype(np.uint8)
    spotted[rng.random((128, 128)) < 0.05] = 255
    images = [encoded(Image.fromarray(pixels), "PNG") for pixels in (noisy, spotted)]
    images += [encoded(draw_scene(0, 256, 256), quality=10), encoded(draw_scene(0, 256, 256), "PNG")]
    noise = dict(zip(NOISE_NAMES, measured(images).noise.T, strict=True))
    # Noise of independent channels has 0.67 of their sigma: the root of the sum of the squared luma weights.
    assert noise["sigma of luma at scale 1"][0] == pytest.approx(6.7, rel=0.1)
    assert noise["kurtosis of luma"][0] == pytest.approx(3, abs=0.3)
    # Two spots side by side are not isolated: 0.05 * 0.95**4.
    assert noise["isolated pixels"].tolist()[:2] == pytest.approx([0.0, 0.041], abs=0.005)
    assert noise["blockiness"][2] > 1.5 > noise["blockiness"][3]
