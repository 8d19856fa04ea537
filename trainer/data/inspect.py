"""Statistics of a source without decoding: number of images, classes and image size.

The median size is estimated from the headers of a sample of files.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.checks import require_images
from trainer.data.fetch import list_images
from trainer.data.header import declared_size
from trainer.data.items import Item
from trainer.data.progress import Progress
from trainer.data.shards.packed import find_shards
from trainer.spec.schema import DataSpec

_SAMPLE = 200
_HEADER_BYTES = 1 << 16
_CIFAR_SIDE = 32


@dataclass(frozen=True)
class SourceSummary:
    """Size statistics of a source."""

    images: int
    """Number of images outside the held-out splits of the source; all images if there are no others."""
    held_out: int
    classes: dict[str, int]
    """Number of these `images` by class."""
    side: int | None
    """Median length of the shorter side in pixels, over a sample; None if no header of the sample is
    readable."""


def inspect_source(spec: DataSpec, cache_dir: Path, progress: Progress) -> SourceSummary | None:
    """Return statistics of the source; None for shards, whose images are already resized.

    Raises the errors of `load_dataset` for a source that cannot be read.
    """
    if find_shards(spec) is not None:
        return None
    contents = list_images(spec, cache_dir, progress)
    require_images(contents.items, contents.rejections, spec.source)
    train = [item for item in contents.items if item.split in ("train", None)] or contents.items
    classes = Counter(label for item in train for label in item.classes)
    return SourceSummary(len(train), len(contents.items) - len(train), dict(classes), _median_side(train))


def _median_side(items: Sequence[Item]) -> int | None:
    step = max(1, len(items) // _SAMPLE)
    sides = [side for item in items[::step] if (side := _side(item)) is not None]
    return round(statistics.median(sides)) if sides else None


def _side(item: Item) -> int | None:
    """Return the length of the image's shorter side in pixels; None if its header is not readable."""
    if item.encoding == "cifar":
        return _CIFAR_SIDE
    try:
        with open(item.path, "rb") as file:
            file.seek(item.offset)
            size = declared_size(file.read(min(_HEADER_BYTES, item.length or _HEADER_BYTES)))
    except (OSError, ValueError, IndexError):
        return None
    return min(size) if size is not None else None
