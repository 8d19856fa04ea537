"""Odd images among drawn ones."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.drawn_items import draw_scene, encoded, measured
from PIL import Image, ImageEnhance, ImageFilter

from trainer.audit.odd import find_odd_images, robust_scores

USUAL = [encoded(draw_scene(seed, 100 + seed % 7, 80 + seed % 5), "PNG") for seed in range(30)]


def noisy(level: float, spread: float) -> bytes:
    pixels = np.random.default_rng(0).normal(level, spread, (80, 100, 3))
    return encoded(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), "PNG")


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 8
    return encoded(draw_scene(40).transpose(Image.Transpose.ROTATE_90), exif=exif)


ODD = {
    "unreadable": lambda: b"not an image",
    "blank": lambda: encoded(Image.new("RGB", (100, 80), "white"), "PNG"),
    "nearly uniform": lambda: noisy(120, 5),
    "dark": lambda: encoded(ImageEnhance.Brightness(draw_scene(40)).enhance(0.12), "PNG"),
    "bright": lambda: encoded(Image.eval(draw_scene(40), lambda value: 215 + value // 6), "PNG"),
    "blurred": lambda: encoded(draw_scene(40).filter(ImageFilter.GaussianBlur(8)), "PNG"),
    "tiny": lambda: encoded(draw_scene(40, 12, 12), "PNG"),
    "elongated": lambda: encoded(draw_scene(40, 400, 75), "PNG"),
    "turned": turned,
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_image_is_named_with_its_kind_alone(kind: str) -> None:
    odd = find_odd_images(measured([*USUAL[:20], ODD[kind](), *USUAL[20:]]))
    assert [(image.row, image.kind) for image in odd] == [(20, kind)]
    assert odd[0].sentence.endswith(".")


def test_usual_images_are_not_odd() -> None:
    assert find_odd_images(measured(USUAL)) == []


def test_night_scenes_are_not_odd_among_night_scenes() -> None:
    night = [encoded(ImageEnhance.Brightness(draw_scene(seed)).enhance(0.25), "PNG") for seed in range(30)]
    measures = measured(night)
    assert (measures.brightness < 0.15).mean() > 0.3
    assert "dark" not in {image.kind for image in find_odd_images(measures)}


def test_soft_images_are_not_odd_among_soft_images() -> None:
    soft = [
        encoded(draw_scene(seed, 300, 240).filter(ImageFilter.GaussianBlur(7)), "PNG") for seed in range(25)
    ]
    measures = measured(soft)
    assert (measures.sharpness < 25).all()
    assert "blurred" not in {image.kind for image in find_odd_images(measures)}


def test_black_image_is_blank_among_three() -> None:
    black = encoded(Image.new("L", (100, 80)), "PNG")
    odd = find_odd_images(measured([USUAL[0], black, USUAL[1]]))
    assert [(image.row, image.kind) for image in odd] == [(1, "blank")]


@pytest.mark.parametrize("count", [0, 1, 30])
def test_unreadable_images_alone_are_all_named(count: int) -> None:
    assert [image.kind for image in find_odd_images(measured([None] * count))] == ["unreadable"] * count


def test_equal_images_are_not_odd() -> None:
    assert find_odd_images(measured([USUAL[0]] * 30)) == []


def test_scores_are_in_standard_deviations_of_a_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(5, 2, 10_000)
    scores = robust_scores(np.array([*values, 9.0, np.nan]))
    assert scores[-2] == pytest.approx(2, abs=0.1)
    assert np.isnan(scores[-1])


def test_scores_of_mostly_equal_values_use_the_mean_deviation() -> None:
    scores = robust_scores(np.array([1.0] * 99 + [2.0]))
    assert scores[0] == 0
    assert scores[-1] == pytest.approx(1 / (1.2533 * 0.01))
    assert set(robust_scores(np.ones(30))) == {0.0}
