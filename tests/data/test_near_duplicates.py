"""Near-duplicates: resized, re-encoded, mirrored and cropped copies, and images that only look similar."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from trainer.data.near_duplicates import build_thumbnails, find_near_duplicates

SIDE = 112


class Pixels:
    """Images in memory."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images, self.shape = images, images.shape

    def cache(self, indices: NDArray[np.integer]) -> None:
        """Do nothing."""

    def prefetch(self, *passes: NDArray[np.integer]) -> None:
        """Do nothing."""

    def gather(self, indices: NDArray[np.integer]) -> NDArray[np.uint8]:
        return self.images[indices]


def scene(seed: int) -> Image.Image:
    """Draw coarse random colours with some finer ones on top."""
    chance = np.random.default_rng(seed)
    layers = [
        Image.fromarray(chance.integers(0, 256, (side, side, 3), np.uint8)).resize(
            (160, 140), Image.Resampling.BICUBIC
        )
        for side in (4, 11)
    ]
    return Image.blend(*layers, alpha=0.35)


def encoded(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=25)
    return Image.open(buffer)


COPIES = {
    "resized or re-encoded": lambda image: encoded(image.resize((90, 80))),
    "mirrored": ImageOps.mirror,
    "cropped": lambda image: image.crop((8, 0, 160, 133)),
}


def thumbnails(images: list[Image.Image]) -> NDArray[np.uint8]:
    pixels = np.stack([np.asarray(image.convert("RGB").resize((SIDE, SIDE))) for image in images])
    return build_thumbnails(Pixels(pixels), len(images))


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_in_one_group_and_other_images_in_none(how: str) -> None:
    originals = [scene(seed) for seed in range(40)]
    copies = [COPIES[how](image) for image in originals[:10]]
    groups = find_near_duplicates(thumbnails([*originals, *copies]))
    assert [group.rows for group in groups] == [(row, 40 + row) for row in range(10)]
    assert {group.how for group in groups} == {how}


def test_features_find_the_same_groups() -> None:
    originals = [scene(seed) for seed in range(30)]
    features = np.random.default_rng(0).normal(size=(31, 200))
    features[30] = features[3] + 0.01
    groups = find_near_duplicates(thumbnails([*originals, ImageOps.mirror(originals[3])]), features)
    assert [group.rows for group in groups] == [(3, 30)]


def test_few_similar_images_are_called_copies() -> None:
    images = load_digits().images[:600]
    digits = [Image.fromarray((image * 15).astype(np.uint8)).resize((SIDE, SIDE)) for image in images]
    groups = find_near_duplicates(thumbnails(digits))
    assert sum(len(group.rows) for group in groups) < 0.1 * len(digits)


def test_blank_images_and_few_images_are_no_duplicates() -> None:
    blank = [Image.new("RGB", (50, 50), (value, value, value)) for value in (0, 120, 255)]
    assert find_near_duplicates(thumbnails(blank)) == []
    assert find_near_duplicates(thumbnails([scene(0)])) == []
    assert [group.rows for group in find_near_duplicates(thumbnails([scene(0), scene(0)]))] == [(0, 1)]
    assert find_near_duplicates(np.zeros((0, 56, 56), np.uint8)) == []


def test_thumbnails_of_grey_and_small_images_have_the_same_size() -> None:
    pixels = np.arange(2 * 9 * 7, dtype=np.uint8).reshape(2, 9, 7, 1)
    small = build_thumbnails(Pixels(pixels), 2)
    assert small.shape == (2, 56, 56)
    assert small[0, 0, 0] == 0
    assert small[1, -1, -1] == 125
