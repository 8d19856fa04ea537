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
from trainer.data.shards.index import INDEX, JOURNAL, Index, ShardManifest, read_catalogue
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
    place = without_scheme(spec.source)
    if spec.layout not in ("auto", "shards") or not (is_bucket(place) or os.path.isdir(place)):
        catalogue = None
    else:
        store = open_store(place)
        catalogue = read_catalogue(store)
        if catalogue is None and store.find(JOURNAL) is not None:
            raise DataError(
                "The shards are not all packed yet; let `trainer shard` finish, the same command goes on "
                "where it stopped.",
                received=f"{shown_address(spec.source)!r}",
            )
    if catalogue is not None:
        require_single(spec)
        return store, catalogue
    if spec.layout == "shards":
        raise DataError(
            "data.layout is shards, but the source has no shards.json, which `trainer shard` writes when it "
            "is done.",
            received=f"{shown_address(spec.source)!r}",
        )
    return None


def require_single(spec: DataSpec) -> None:
    """Raise UsageError for multi-label data, because a shard stores one label per image."""
    if spec.labels == "multi":
        raise UsageError(
            "Shards hold one label an image; with data.labels=multi train on the table itself, with --data "
            "TABLE.csv and its images beside it.",
            received=f"{shown_address(spec.source)!r}",
        )


def open_shards(
    store: Store, catalogue: ShardManifest, spec: DataSpec, cache_dir: Path
) -> tuple[Index, ShardCache]:
    """Return the index of the shards in `store` and the staging that reads them. Raises DataError."""
    folder = cache_dir / "shards" / catalogue.index_sha256[:16]
    index = Index(_local_index(store, folder), catalogue)
    if len(index.starts) != len(catalogue.shards) + 1 or index.starts[-1] != len(index):
        raise DataError(
            "The index of the shards does not fit their list; pack them again.", received=store.uri
        )
    return index, ShardCache(store, catalogue.shards, folder, spec.staged_mib << 20, spec.shuffle_shards)


def _local_index(store: Store, folder: Path) -> Path:
    if not is_bucket(store.uri):
        return Path(store.uri) / INDEX
    prepare_folder(folder)
    store.download(INDEX, folder / INDEX)
    return folder / INDEX


def starts_of(split: str, catalogue: ShardManifest, index: Index) -> NDArray[np.int64]:
    """Return the numbers of the first images of the shards of `split`, and the end of the last shard."""
    own = [number for number, shard in enumerate(catalogue.shards) if shard.split == split]
    return index.starts[[*own, own[-1] + 1]]  # the shards of a split are consecutive


def packed_items(split: str, catalogue: ShardManifest, index: Index, staging: ShardCache) -> PackedItems:
    """Return the images of `split`, which must have at least one shard."""
    starts = starts_of(split, catalogue, index)
    return PackedItems(index, staging, int(starts[0]), int(starts[-1]))


@dataclass(frozen=True)
class _Packed:
    """One image in a shard."""

    name: str
    index: Index
    staging: ShardCache
    number: int
    encoding: str = "image"

    def read(self) -> bytes:
        """Return its bytes. Raises DataError if they are damaged."""
        shard = int(self.index.shards_of(np.asarray([self.number], np.int64))[0])
        return read_packed(self.index, self.staging, shard, self.number)


class PackedItems(Sequence[Source]):
    """Sequence of the images of a split; names are read on demand."""

    def __init__(self, index: Index, staging: ShardCache, first: int, end: int) -> None:
        self._index, self._staging, self._first, self._end = index, staging, first, end

    def __len__(self) -> int:
        return self._end - self._first

    @overload
    def __getitem__(self, place: int) -> Source: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Source]: ...

    def __getitem__(self, place: int | slice) -> Source | Sequence[Source]:
        numbers = range(self._first, self._end)[place]
        if isinstance(numbers, int):
            return self._packed(numbers, self._index.names(numbers, numbers + 1)[0])
        return [self._packed(number, self._index.names(number, number + 1)[0]) for number in numbers]

    def __iter__(self) -> Iterator[Source]:
        names = self._index.names(self._first, self._end)
        return (self._packed(self._first + place, name) for place, name in enumerate(names))

    def _packed(self, number: int, name: str) -> Source:
        return _Packed(name, self._index, self._staging, number)


def read_packed(index: Index, staging: ShardCache, shard: int, number: int) -> bytes:
    """Return the bytes of one image, by its shard and its number in the dataset. Raises DataError."""
    place = shard, int(index.offsets[number]), int(index.lengths[number])
    data, expected = staging.read(*place), index.checksums[number]
    if google_crc32c.value(data) != expected and staging.forget(shard):
        data = staging.read(*place)  # the local copy may be damaged
    if google_crc32c.value(data) != expected:
        raise DataError(
            "A shard is damaged: an image does not match its checksum. Get the shard again, or pack the "
            "data again.",
            received=f"{staging.at(shard)}, byte {index.offsets[number]}",
        )
    return data
