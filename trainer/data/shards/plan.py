"""Assignment of images to shards.

The assignment and the order within a shard depend only on the contents and names of the images, not on the
number of processes that pack them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset, Split


@dataclass(frozen=True)
class PlannedShard:
    """One shard before it is written."""

    name: str
    split: str
    rows: NDArray[np.int64]
    """Indices of its images in the split, in shard order, int64 [images]."""


def plan_shards(dataset: Dataset, sizes: Sequence[int], shard_bytes: int) -> list[PlannedShard]:
    """Return the shards of all splits, each of about `shard_bytes` or with a single larger image.

    `sizes` is the size in bytes of each image of the source, by number.
    """
    return [
        shard
        for split in dataset.splits.values()
        for shard in _shards_of(split, np.asarray(sizes), shard_bytes)
    ]


def _shards_of(split: Split, sizes: NDArray[np.int64], shard_bytes: int) -> list[PlannedShard]:
    # Sort by hash: adjacent files of a folder, such as images of one day, must not be adjacent in training.
    keys = [_key(item.name, content) for item, content in zip(split.items, split.contents, strict=True)]
    order = np.asarray(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    middles = np.cumsum(sizes[split.numbers[order]]) - sizes[split.numbers[order]] / 2
    total = int(sizes[split.numbers].sum())
    count = max(1, round(total / shard_bytes))
    # Shards of equal size instead of full shards and a small remainder.
    parts = np.minimum(middles * count // max(1, total), count - 1).astype(np.int64)
    groups = [order[parts == part] for part in range(count) if (parts == part).any()]
    return [
        PlannedShard(f"{split.name}-{index:05d}-of-{len(groups):05d}.tfrecord", split.name, rows)
        for index, rows in enumerate(groups)
    ]


def _key(name: str, content: str) -> bytes:
    return hashlib.sha256(f"{content}\0{name}".encode("utf-8", "surrogateescape")).digest()
