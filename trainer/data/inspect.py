"""A first look at a source: how many images of which classes, and how large, before any is decoded.

In: a `DataSpec`. Out: counts and the median size of a sample, from the headers of the files alone.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.checks import require_images
from trainer.data.fetch import buckets_of, extraction_of, fetch_source
from trainer.data.header import declared_size
from trainer.data.items import Item
from trainer.data.layouts import read_layout
from trainer.data.progress import Progress
from trainer.data.shards.packed import find_shards
from trainer.spec.schema import DataSpec

_SAMPLE = 200
_HEADER_BYTES = 1 << 16
_CIFAR_SIDE = 32


@dataclass(frozen=True)
class Outlook:
    """What a source holds."""

    images: int
    """Those that the source doesn't hold out itself."""
    held_out: int
    classes: dict[str, int]
    """Those `images` by class."""
    side: int | None
    """Median of the shorter side in pixels, of a sample; None if no header of the sample could be read."""


def inspect_source(spec: DataSpec, cache_dir: Path, progress: Progress) -> Outlook | None:
    """Return what the source holds; None for shards, whose images were resized when they were packed.

    Raises what `load_dataset` raises for a source that can't be read.
    """
    if find_shards(spec) is not None:
        return None
    root = fetch_source(spec.source, spec.checksum, cache_dir, spec.max_extracted_mib << 20, progress)
    read = read_layout(
        root, spec.layout, buckets_of(spec, cache_dir, progress), extraction_of(spec, cache_dir, progress),
        spec.labels,
    )  # fmt: skip
    require_images(read.items, read.rejections, spec.source)
    own = [item for item in read.items if item.split in ("train", None)] or read.items
    classes = Counter(label for item in own for label in item.classes)
    return Outlook(len(own), len(read.items) - len(own), dict(classes), _median_side(own))


def _median_side(items: Sequence[Item]) -> int | None:
    step = max(1, len(items) // _SAMPLE)
    sides = [side for item in items[::step] if (side := _side(item)) is not None]
    return round(statistics.median(sides)) if sides else None


def _side(item: Item) -> int | None:
    """Return the shorter side of an image in pixels; None if its header can't be read."""
    if item.encoding == "cifar":
        return _CIFAR_SIDE
    try:
        with open(item.path, "rb") as file:
            file.seek(item.offset)
            size = declared_size(file.read(min(_HEADER_BYTES, item.length or _HEADER_BYTES)))
    except (OSError, ValueError, IndexError):
        return None
    return min(size) if size is not None else None
