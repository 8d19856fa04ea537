"""Sharded datasets as a data source.

Returns a `Dataset` like any other source. Only numeric columns are in memory: each image is read from its
shard and decoded on access. Decoded images are cached only in a run of one process, if all of them fit into
the cache.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.data.convert import as_file
from trainer.data.dataset import Dataset, Split
from trainer.data.image_store import ImageStore, Pixels, Subset, Write
from trainer.data.ingest import build_to_pixels
from trainer.data.items import SPLITS
from trainer.data.sampler import Shards
from trainer.data.shards.index import Index, ShardManifest
from trainer.data.shards.packed import ShardCache, find_starts, open_shards, packed_items, read_packed
from trainer.distributed import ProcessGroup
from trainer.errors import DataError, UsageError
from trainer.sanitize import shown_address
from trainer.spec.schema import DataSpec
from trainer.storage.store import Store

_LARGEST_CHUNK = 32


def load_shards(
    store: Store, manifest: ShardManifest, spec: DataSpec, cache_dir: Path, group: ProcessGroup
) -> Dataset:
    """Return the dataset of the shards in `store`. Raises DataError, TemporaryError, UsageError."""
    if len(set(group.all_gather(manifest.index_sha256.encode()))) > 1:
        raise DataError(
            "The processes of the run have different shards.",
            "Use the same shards for all processes.",
            received=f"{store.uri} on {group.process.name(group.process.process_index)}",
        )
    names = _usable_splits(store, manifest, spec.held_out)
    index, cache = open_shards(store, manifest, spec, cache_dir)
    reader = _ShardReader(index, cache, spec)
    budget_bytes = spec.cache_mib << 20
    pixels = ImageStore(
        len(index),
        spec.pixel_format.shape,
        budget_bytes,
        cache_dir / "pixels",
        reader.decode,
        reader.prefetch,
    )
    if group.process.process_count == 1 and int(np.prod(pixels.shape)) <= budget_bytes:
        pixels.cache(np.arange(len(index)))
    splits = {name: _split(name, manifest, index, cache, pixels, spec) for name in names}
    summary = manifest.summary | {
        "source": shown_address(spec.source),
        "layout": "shards",
        "packed_from": {key: manifest.summary.get(key) for key in ("source", "layout")},
        # The order differs from that of the source, so resuming must treat it as a different dataset.
        "digest": f"sha256:{manifest.index_sha256}",
    }
    return Dataset(
        manifest.class_names, splits, manifest.rejected, summary, manifest.index_sha256, manifest.warnings
    )


def _usable_splits(store: Store, manifest: ShardManifest, held_out: str) -> list[str]:
    """Return the splits that `data.held_out` allows.

    Raises UsageError for "train", and for "validation" without a validation split: both need packing again.
    """
    names = [name for name in SPLITS if any(shard.split == name for shard in manifest.shards)]
    if held_out == "auto":
        return names
    if held_out == "train" or "validation" not in names:
        raise UsageError(
            "The splits of shards are fixed when they are packed.",
            "Pack the data again, into another folder, with "
            f"`trainer shard --set data.held_out={held_out}`, and train with data.held_out=validation.",
            received=f"data.held_out={held_out} for {store.uri} with {', '.join(names)}",
        )
    return [name for name in names if name != "test"]


def _split(
    name: str, manifest: ShardManifest, index: Index, cache: ShardCache, pixels: ImageStore, spec: DataSpec
) -> Split:
    starts = find_starts(name, manifest, index)
    numbers = np.arange(starts[0], starts[-1])
    return Split(
        name=name,
        items=packed_items(name, manifest, index, cache),
        labels=index.labels[starts[0] : starts[-1]],
        pixels=Subset(pixels, numbers),
        numbers=numbers,
        contents=(),
        shards=Shards(starts - starts[0], spec.shuffle_shards),
    )


class _ShardReader:
    """Multithreaded reader and decoder of images by number."""

    def __init__(self, index: Index, cache: ShardCache, spec: DataSpec) -> None:
        self._index, self._cache = index, cache
        self._to_pixels = build_to_pixels(spec.pixel_format)
        # Twice the cores, so that some threads decode while others wait for the disk.
        self._threads = 2 * len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

    def prefetch(self, *passes: NDArray[np.int64]) -> None:
        """Set the images that will be decoded next, so that their shards are prefetched."""
        self._cache.prefetch(*(self._index.shards_of(numbers).tolist() for numbers in passes))

    def decode(self, numbers: NDArray[np.int64], write: Write) -> None:
        """Decode the images in `numbers` and `write` their pixels. Raises DataError, TemporaryError."""
        chunk = max(1, min(_LARGEST_CHUNK, len(numbers) // self._threads))
        starts = range(0, len(numbers), chunk)
        for _ in self._pool.map(lambda start: self._decode(numbers[start : start + chunk], write), starts):
            pass

    def _decode(self, numbers: NDArray[np.int64], write: Write) -> None:
        shards = self._index.shards_of(numbers)
        files = [
            read_packed(self._index, self._cache, int(shard), int(number))
            for shard, number in zip(shards, numbers, strict=True)
        ]
        try:
            pixels = self._to_pixels("image", files)
        except tf.errors.InvalidArgumentError:
            pixels = self._convert(files)
        for number, image in zip(numbers, pixels, strict=True):
            write(int(number), image)

    def _convert(self, files: list[bytes]) -> Pixels:
        """Decode images that an earlier version packed without conversion. Raises DataError."""
        try:
            return self._to_pixels("image", [as_file(data, "image") for data in files])
        except tf.errors.InvalidArgumentError as error:
            raise DataError(
                "An image in a shard can no longer be decoded.",
                "Pack the data again with `trainer shard`.",
                received=f"{str(error)[:200]}",
            ) from None
