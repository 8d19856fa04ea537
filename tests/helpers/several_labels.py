"""Drawn multi-label images: any combination of a square, a disc and a stripe."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("disc", "square", "stripe")
FAST = [
    "data.labels=multi", "data.threshold_fraction=0.25", "data.image_size=16",
    "train.epochs=6", "train.global_batch_size=16",
    "model={family: residual, stem_filters: 8, stem_stride: 1, filters: [16], blocks: [1], dropout: 0.0}",
    "optimizer.learning_rate=0.01", "train.deterministic=true",
]  # fmt: skip


def draw(shapes: Sequence[str], seed: int, side: int = 16) -> Image.Image:
    """Draw `shapes` on noise, each shape in its own colour."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 90, (side, side, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    x, y = (int(each) for each in random.integers(0, side - 7, 2))
    if "stripe" in shapes:
        pen.rectangle((0, y, side, y + 2), fill=(40, 220, 40))
    if "square" in shapes:
        pen.rectangle((x, y, x + 6, y + 6), fill=(230, 40, 40))
    if "disc" in shapes:
        pen.ellipse((y, x, y + 6, x + 6), fill=(60, 60, 240))
    return image


def label_sets(count: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Return the shapes of `count` images: a disc in half of them, a square in 0.4, a stripe in 0.3."""
    drawn = np.random.default_rng(seed).random((count, len(SHAPES))) < (0.5, 0.4, 0.3)
    return [tuple(name for name, is_there in zip(SHAPES, row, strict=True) if is_there) for row in drawn]


def put_pictures(folder: Path, sets: Sequence[Sequence[str]], seed: int = 0) -> list[str]:
    """Draw an image for each set of shapes in `folder`; return the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:04d}.png" for number in range(len(sets))]
    for number, (name, shapes) in enumerate(zip(names, sets, strict=True)):
        draw(shapes, seed * 10_000 + number).save(folder / name)
    return names


def put_table(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write a CSV table; the first row is its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def put_data(folder: Path, count: int, seed: int = 0) -> Path:
    """Draw `count` images and their table with all labels in one cell; return `folder`."""
    sets = label_sets(count, seed)
    names = put_pictures(folder, sets, seed)
    rows = [(name, ";".join(shapes)) for name, shapes in zip(names, sets, strict=True)]
    put_table(folder / "labels.csv", [("path", "labels"), *rows])
    return folder
