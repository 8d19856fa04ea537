"""Random access to the encoded images in shards.

Opens the index of a folder or bucket with shards. The images of each split are a sequence whose names and
bytes are read on demand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from trainer.data.items import Source
from trainer.data.shards.index import INDEX_FILE, RECIPE_FILE, Index, ShardManifest, read_shard_manifest
from trainer.data.shards.shard_cache import ShardCache
from trainer.errors import DataError, UsageError
from trainer.sanitize import shown_address
from trainer.spec.schema import DataSpec
from trainer.storage import prepare_folder
from trainer.storage.store import Store, is_bucket, open_store, without_scheme


def find_shards(spec: DataSpec) -> tuple[Store, ShardManifest] | None:
    """Return the store and the manifest of the shards that `spec` refers to, or None for another source.

    Raises DataError if the manifest is invalid, if packing is not complete, or if the layout is "shards" and
    there are none.
    """
    location = without_scheme(spec.source)
    if spec.layout not in ("auto", "shards") or not (is_bucket(location) or os.path.isdir(location)):
        manifest = None
    else:
        store = open_store(location)
        manifest = read_shard_manifest(store)
        if manifest is None and store.find(RECIPE_FILE) is not None:
            raise DataError(
                "The shards are incomplete.",
                "Run the same `trainer shard` command again to finish packing.",
                received=f"{shown_address(spec.source)!r}",
            )
    if manifest is not None:
        require_single_label(spec)
        return store, manifest
    if spec.layout == "shards":
        raise DataError(
            "data.layout is shards, but the source has no shards.json.",
            "Check data.source, or pack the data with `trainer shard`, which writes this file last.",
            received=f"{shown_address(spec.source)!r}",
        )
    return None


def require_single_label(spec: DataSpec) -> None:
    """Raise UsageError for multi-label data, because a shard stores one label per image."""
    if spec.labels == "multi":
        raise UsageError(
            "Shards store one label per image, but data.labels is multi.",
            "Train on the table itself with --data TABLE.csv, with the images beside it.",
            received=f"{shown_address(spec.source)!r}",
        )


def open_shards(
    store: Store, manifest: ShardManifest, spec: DataSpec, cache_dir: Path
) -> tuple[Index, ShardCache]:
    """Return the index of the shards in `store` and the cache that reads them. Raises DataError."""
    folder = cache_dir / "shards" / manifest.index_sha256[:16]
    index = Index(_fetch_index(store, folder), manifest)
    if len(index.starts) != len(manifest.shards) + 1 or index.starts[-1] != len(index):
        raise DataError(
            "The index of the shards does not match shards.json.",
            "Pack the shards again with `trainer shard`.",
            received=store.uri,
        )
    return index, ShardCache(store, manifest.shards, folder, spec.staged_mib << 20, spec.shuffle_shards)


def _fetch_index(store: Store, folder: Path) -> Path:
    if not is_bucket(store.uri):
        return Path(store.uri) / INDEX_FILE
    prepare_folder(folder)
    store.download(INDEX_FILE, folder / INDEX_FILE)
    return folder / INDEX_FILE


def find_starts(split: str, manifest: ShardManifest, index: Index) -> NDArray[np.int64]:
    """Return the numbers of the first images of the shards of `split`, and the end of the last shard."""
    own = [number for number, shard in enumerate(manifest.shards) if shard.split == split]
    return index.starts[[*own, own[-1] + 1]]  # the shards of a split are consecutive


def packed_items(split: str, manifest: ShardManifest, index: Index, cache: ShardCache) -> PackedItems:
    """Return the images of `split`, which must have at least one shard."""
    starts = find_starts(split, manifest, index)
    return PackedItems(index, cache, int(starts[0]), int(starts[-1]))


@dataclass(frozen=True)
class _PackedImage:
    """One image in a shard."""

    name: str
    index: Index
    cache: ShardCache
    number: int
    encoding: str = "image"

    def read(self) -> bytes:
        """Return its bytes. Raises DataError if they are damaged."""
        shard = int(self.index.shards_of(np.asarray([self.number], np.int64))[0])
        return read_packed(self.index, self.cache, shard, self.number)


class PackedItems(Sequence[Source]):
    """Sequence of the images of a split; names are read on demand."""

    def __init__(self, index: Index, cache: ShardCache, first: int, end: int) -> None:
        self._index, self._cache, self._first, self._end = index, cache, first, end

    def __len__(self) -> int:
        return self._end - self._first

    @overload
    def __getitem__(self, key: int) -> Source: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[Source]: ...

    def __getitem__(self, key: int | slice) -> Source | Sequence[Source]:
        numbers = range(self._first, self._end)[key]
        if isinstance(numbers, int):
            return self._open(numbers, self._index.names(numbers, numbers + 1)[0])
        return [self._open(number, self._index.names(number, number + 1)[0]) for number in numbers]

    def __iter__(self) -> Iterator[Source]:
        names = self._index.names(self._first, self._end)
        return (self._open(self._first + row, name) for row, name in enumerate(names))

    def _open(self, number: int, name: str) -> Source:
        return _PackedImage(name, self._index, self._cache, number)


def read_packed(index: Index, cache: ShardCache, shard: int, number: int) -> bytes:
    """Return the bytes of one image, by its shard and its number in the dataset. Raises DataError."""
    location = shard, int(index.offsets[number]), int(index.lengths[number])
    data, expected = cache.read(*location), index.checksums[number]
    if google_crc32c.value(data) != expected and cache.discard(shard):
        data = cache.read(*location)  # the local copy may be damaged
    if google_crc32c.value(data) != expected:
        raise DataError(
            "A shard is damaged: the checksum of an image does not match.",
            "Copy the shard again, or pack the data again with `trainer shard`.",
            received=f"{cache.uri(shard)}, byte {index.offsets[number]}",
        )
    return data
