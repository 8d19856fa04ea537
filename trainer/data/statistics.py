"""Image statistics for comparing data sets.

The statistics are plain values for images.json. They are taken from a sample that is the same as long as the
images are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.convert import as_rgb
from trainer.data.dataset import Dataset, Split
from trainer.data.header import declared_size
from trainer.data.items import THRESHOLDS, Item, Source

SAMPLED = 2_000
"""Maximum number of images in the sample; for shards the share of each split is rounded up."""
_HEX_DIGITS = 16
_CHUNK_BYTES = 16 << 20
"""Maximum size of the pixels that are processed at once; several float32 copies of them need far more
memory."""
_HEADER_BYTES = 1 << 16
_CIFAR_SIDE = 32
_LUMA = np.array([0.2126, 0.7152, 0.0722])
"""Weights of red, green and blue (ITU-R BT.709)."""


@dataclass(frozen=True)
class _SampledImage:
    """One sampled image."""

    key: str
    """Prefix of the SHA-256 of its content, hex digits; empty if not known."""
    split: Split
    row: int


def describe_images(dataset: Dataset, most: int = SAMPLED) -> dict[str, Any]:
    """Return {"images", "distinct", "contents", "trained", "trained_distinct", "measures"} of a data set.

    images, distinct: number of images and of distinct contents; distinct is None if the contents are not
    known. contents: first 16 hex digits of the SHA-256 of the `most` contents with the lowest hashes, which
    are a random sample (Broder 1997); empty if not known. trained, trained_distinct: the same for the
    training images alone, including those of the split 'thresholds'. measures: {name: [...]} with the sorted
    values over the sample: those of `_measure_pixels` and, for readable files, width and height in pixels and
    size in kilobytes (1,000 bytes).
    """
    sample, distinct = _sample(dataset, most)
    train_splits = [split for name, split in dataset.splits.items() if name in ("train", THRESHOLDS)]
    trained = sorted({content[:_HEX_DIGITS] for split in train_splits for content in split.contents})
    measures: dict[str, list[float]] = {}
    for split in dataset.splits.values():
        rows = [image.row for image in sample if image.split is split]
        for name, value in _measure(split, rows):
            measures.setdefault(name, []).append(float(f"{value:.4g}"))
    return {
        "images": sum(len(split.items) for split in dataset.splits.values()),
        "distinct": distinct,
        "contents": [image.key for image in sample] if distinct is not None else [],
        "trained": trained[:most],
        "trained_distinct": len(trained),
        "measures": {name: sorted(values) for name, values in measures.items()},
    }


def count_trained(contents: Sequence[str], images: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many of `contents` a run was trained on and how many could be checked, or (0, 0).

    contents: SHA-256 of each image's bytes, hex digits. images: images.json of the run. All images can be
    checked if the run lists all its training images, otherwise those up to the last hash that it lists, and
    none if it lists none.
    """
    trained = set(images.get("trained") or ())
    if not trained:
        return 0, 0
    limit = "g" if len(trained) == images.get("trained_distinct") else max(trained)  # g: above all hex digits
    checked = sum(content[:_HEX_DIGITS] <= limit for content in contents)
    return int(was_trained_on(contents, images).sum()), checked


def was_trained_on(contents: Sequence[str], images: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return for each image whether the run lists it as a training image, bool [len(contents)].

    The list contains the lowest hashes, and a stratified split holds out the lowest hashes too. An image that
    one run trained on and that a later run with more data holds out is therefore in the list, even if the
    list is incomplete.
    """
    trained = set(images.get("trained") or ())
    return np.fromiter((content[:_HEX_DIGITS] in trained for content in contents), bool, len(contents))


def _sample(dataset: Dataset, most: int) -> tuple[list[_SampledImage], int | None]:
    """Return the images to measure and the number of distinct images, None if that is not known."""
    splits = list(dataset.splits.values())
    if any(split.shards is not None or len(split.contents) != len(split.items) for split in splits):
        # Shards were shuffled when they were packed, and the first images of each split are fast to read.
        total = sum(len(split.items) for split in splits)
        shares = [min(len(split.items), -(-most * len(split.items) // total)) for split in splits]
        return [
            _SampledImage("", split, row)
            for split, share in zip(splits, shares, strict=True)
            for row in range(share)
        ], None
    by_content = {
        content[:_HEX_DIGITS]: _SampledImage(content[:_HEX_DIGITS], split, row)
        for split in splits
        for row, content in enumerate(split.contents)
    }
    return [by_content[key] for key in sorted(by_content)[:most]], len(by_content)


def _measure(split: Split, rows: Sequence[int]) -> Iterator[tuple[str, float]]:
    chunk_images = max(1, _CHUNK_BYTES // max(1, 3 * int(np.prod(split.pixels.shape[1:3]))))
    for start in range(0, len(rows), chunk_images):
        chunk = np.asarray(rows[start : start + chunk_images], np.int64)
        measures = _measure_pixels(as_rgb(split.pixels.gather(chunk)))
        for name, values in measures.items():
            yield from ((name, float(value)) for value in values)
    for row in rows:
        yield from _measure_file(split.items[row])


def _measure_pixels(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Return measures of images, uint8 [n, height, width, 3], each float64 [n].

    brightness and contrast: mean and standard deviation of the luma, in 0..1. colourfulness: as in Hasler and
    Suesstrunk (2003), approximately in 0..1. warmth: mean of red minus mean of blue, in -1..1.
    """
    images = pixels.reshape(len(pixels), -1, 3).astype(np.float32) / 255
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    luma = images @ _LUMA.astype(np.float32)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(axis=1), yellow_blue.std(axis=1))
    middle = np.hypot(red_green.mean(axis=1), yellow_blue.mean(axis=1))
    return {
        "brightness": luma.mean(axis=1),
        "contrast": luma.std(axis=1),
        "colourfulness": spread + 0.3 * middle,
        "warmth": red.mean(axis=1) - blue.mean(axis=1),
    }


def _measure_file(item: Source) -> Iterator[tuple[str, float]]:
    """Yield width, height and kilobytes of an image's file; nothing if it cannot be read."""
    if item.encoding == "cifar":
        yield from (("width", _CIFAR_SIDE), ("height", _CIFAR_SIDE))
        return
    try:
        data, size_bytes = _read_head(item)
        size = declared_size(data)
    except (OSError, ValueError, IndexError):
        return
    if size is not None:
        yield from (("width", size[0]), ("height", size[1]), ("kilobytes", size_bytes / 1000))


def _read_head(item: Source) -> tuple[bytes, int]:
    """Return the first bytes of an image's file, and its size in bytes. Raises OSError."""
    if not isinstance(item, Item):
        data = item.read()
        return data, len(data)
    with open(item.path, "rb") as file:
        end = file.seek(0, 2) if item.length is None else item.offset + item.length
        file.seek(item.offset)
        return file.read(min(_HEADER_BYTES, end - item.offset)), end - item.offset
