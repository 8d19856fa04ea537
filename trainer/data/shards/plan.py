"""Which image comes into which shard.

In: a checked data set, and how large its files are. Out: the names of the shards and the images of each,
in an order that follows from their contents: the same however many processes pack them.
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
    """The place of its images in the split, in the order of the shard, int64 [images]."""


def plan_shards(dataset: Dataset, sizes: Sequence[int], shard_bytes: int) -> list[PlannedShard]:
    """Return the shards of all splits, each of about `shard_bytes` or of one image that is larger.

    `sizes`: bytes of each image that was found, by its number.
    """
    return [
        shard
        for split in dataset.splits.values()
        for shard in _shards_of(split, np.asarray(sizes), shard_bytes)
    ]


def _shards_of(split: Split, sizes: NDArray[np.int64], shard_bytes: int) -> list[PlannedShard]:
    # By a hash: neighbours in a folder, as the pictures of one day, would else be neighbours in training.
    keys = [_key(item.name, content) for item, content in zip(split.items, split.contents, strict=True)]
    order = np.asarray(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    middles = np.cumsum(sizes[split.numbers[order]]) - sizes[split.numbers[order]] / 2
    total = int(sizes[split.numbers].sum())
    count = max(1, round(total / shard_bytes))
    # Of equal size rather than full ones and a rest.
    parts = np.minimum(middles * count // max(1, total), count - 1).astype(np.int64)
    groups = [order[parts == part] for part in range(count) if (parts == part).any()]
    return [
        PlannedShard(f"{split.name}-{index:05d}-of-{len(groups):05d}.tfrecord", split.name, rows)
        for index, rows in enumerate(groups)
    ]


def _key(name: str, content: str) -> bytes:
    return hashlib.sha256(f"{content}\0{name}".encode("utf-8", "surrogateescape")).digest()
