"""Shortcuts that are planted in drawn images, and none where there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.drawn_items import draw_scene, encoded, measured
from PIL import Image, ImageOps

from trainer.audit.measures import Measures
from trainer.audit.shortcuts import find_shortcuts, folders_below

COUNT = 80
CLASSES = ["cats", "dogs"]
LABELS = np.arange(COUNT) % 2


def sides(seed: int) -> tuple[int, int]:
    width, height = np.random.default_rng((1, seed)).integers(60, 100, 2)
    return int(width), int(height)


def usual(seed: int) -> Image.Image:
    return draw_scene(seed, *sides(seed))


@pytest.fixture(scope="module")
def clean() -> Measures:
    """Measures of images whose properties do not depend on the label."""
    return measured([encoded(usual(seed)) for seed in range(COUNT)])


def with_exif(tag: int, value: str) -> Image.Exif:
    exif = Image.Exif()
    exif[tag] = value
    return exif


def dated(label: int, seed: int) -> Image.Exif:
    return with_exif(306, f"2024:0{1 + 3 * label}:{1 + seed % 28:02} 12:00:00")


PLANTED: dict[str, Callable[[int, int], bytes]] = {
    "JPEG quality": lambda label, seed: encoded(usual(seed), quality=80 + 10 * label),
    "width": lambda label, seed: encoded(draw_scene(seed, 70 + 20 * label, sides(seed)[1])),
    "frame": lambda label, seed: encoded(ImageOps.expand(usual(seed), 3, fill=(label * 200, 0, 90))),
    "file format": lambda label, seed: encoded(usual(seed), ("PNG", "BMP")[label]),
    "EXIF camera": lambda label, seed: encoded(usual(seed), exif=with_exif(272, ("Nikon", "Canon")[label])),
    "EXIF date": lambda label, seed: encoded(usual(seed), exif=dated(label, seed)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_shortcut_is_named(name: str) -> None:
    images = [PLANTED[name](int(label), seed) for seed, label in enumerate(LABELS)]
    result = find_shortcuts(measured(images), LABELS, CLASSES)
    assert result is not None
    assert result.claimed[0].name == name
    assert result.claimed[0].accuracy > 0.9
    assert result.sentences(CLASSES)[0].startswith(
        f"Shortcut: the {name} alone predicts the class with accuracy"
    )


def test_folder_below_the_class_is_a_shortcut_and_the_class_folder_is_not(clean: Measures) -> None:
    classes = np.array(CLASSES)[LABELS]
    sites = np.where(np.random.default_rng(0).random(COUNT) < 0.9, LABELS, 1 - LABELS)
    named = replace(clean, source=np.array([f"train/{name}" for name in classes]))
    assert find_shortcuts(named, LABELS, CLASSES).claimed == ()  # type: ignore[union-attr]
    sourced = replace(
        clean, source=np.array([f"train/{name}/site{n}" for name, n in zip(classes, sites, strict=True)])
    )
    result = find_shortcuts(sourced, LABELS, CLASSES)
    assert result is not None
    assert [field.name for field in result.claimed] == ["folder"]


def test_folders_without_a_class_are_used_as_they_are() -> None:
    folders = np.array(["train/cats/a/b", "cats", "train/cats", "lab1/day2", ""])
    assert folders_below(folders, CLASSES).tolist() == ["a/b", "", "", "lab1/day2", ""]


def test_colour_that_predicts_the_class_is_not_called_a_shortcut() -> None:
    reddened = [
        Image.eval(usual(seed).getchannel(0), lambda value, add=60 * label: min(255, value // 2 + add))
        for seed, label in enumerate(LABELS)
    ]
    images = [
        encoded(Image.merge("RGB", (red, *usual(seed).split()[1:])), "PNG", compress_level=0)
        for seed, red in enumerate(reddened)
    ]
    result = find_shortcuts(measured(images), LABELS, CLASSES)
    assert result is not None
    assert result.claimed == ()
    assert result.sentences(CLASSES)[0].startswith("The mean colour alone predicts the class")


def test_shuffled_labels_have_no_shortcut(clean: Measures) -> None:
    for seed in range(10):
        result = find_shortcuts(clean, np.random.default_rng(seed).permutation(LABELS), CLASSES)
        assert result is not None
        assert result.sentences(CLASSES) == []


def test_shortcut_of_one_class_of_many_is_named(clean: Measures) -> None:
    labels = np.arange(COUNT) % 8
    quality = np.where(labels == 5, 30, clean.jpeg_quality).astype(np.int16)
    result = find_shortcuts(
        replace(clean, jpeg_quality=quality), labels, [f"class {number}" for number in range(8)]
    )
    assert result is not None
    assert result.claimed[0].name == "JPEG quality"
    assert result.claimed[0].accuracy < result.chance + 0.25
    assert (
        'separates the class "class 5" best'
        in result.sentences([f"class {number}" for number in range(8)])[0]
    )


def test_shortcut_of_a_rare_class_is_named(clean: Measures) -> None:
    labels = (np.arange(COUNT) % 10 == 0).astype(np.int64)
    orientation = np.where(labels == 1, 6, 1).astype(np.uint8)
    result = find_shortcuts(replace(clean, orientation=orientation), labels, CLASSES)
    assert result is not None
    assert result.claimed[0].name == "EXIF orientation"


def test_result_is_the_same_in_each_call(clean: Measures) -> None:
    assert find_shortcuts(clean, LABELS, CLASSES) == find_shortcuts(clean, LABELS, CLASSES)


def without(clean: Measures) -> dict[str, tuple[Measures, Any]]:
    return {
        "one class": (clean, np.zeros(COUNT, np.int64)),
        "three images": (clean.take(np.arange(3)), LABELS[:3]),
        "no images": (clean.take(np.arange(0)), LABELS[:0]),
        "no readable image": (measured([None] * COUNT), LABELS),
        "small second class": (clean, (np.arange(COUNT) < 4).astype(np.int64)),
    }


@pytest.mark.parametrize(
    "case", ["one class", "three images", "no images", "no readable image", "small second class"]
)
def test_too_little_data_have_no_result(case: str, clean: Measures) -> None:
    measures, labels = without(clean)[case]
    assert find_shortcuts(measures, labels, CLASSES) is None


def test_equal_images_predict_nothing() -> None:
    result = find_shortcuts(measured([encoded(usual(0))] * COUNT), LABELS, CLASSES)
    assert result is not None
    assert result.fields == result.claimed == ()
    assert result.technical.accuracy <= 0.5
