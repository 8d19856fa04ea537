"""Shards as a data set.

In: a place where shards were packed. Out: a `Dataset` as from any other source, of whose images nothing is
in memory but numbers: each is read from its shard and decoded when it is taken. Only if all of them,
decoded, fit the cache are they decoded once and kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import google_crc32c
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.data.batches import Shards
from trainer.data.dataset import Dataset, Split
from trainer.data.holding import Holding, View, Write
from trainer.data.ingest import build_to_pixels
from trainer.data.items import SPLITS, Source
from trainer.data.shards.index import INDEX, JOURNAL, Catalogue, Index, read_catalogue
from trainer.data.shards.staging import Staging
from trainer.exits import DataError
from trainer.hosts import Peers
from trainer.printable import without_secrets
from trainer.spec.schema import DataSpec
from trainer.storage import prepare_folder
from trainer.storage.store import Store, is_bucket, open_store, without_scheme

_LARGEST_CHUNK = 32


def find_shards(spec: DataSpec) -> tuple[Store, Catalogue] | None:
    """Return the place of the shards that `spec` names, and their list; None if it names something else.

    Raises DataError if the list can't be used, or if the layout is said to be shards and there are none.
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
                f"where it stopped. Received: {without_secrets(spec.source)!r}"
            )
    if catalogue is not None:
        return store, catalogue
    if spec.layout == "shards":
        raise DataError(
            "data.layout is shards, but the source has no shards.json, which `trainer shard` writes when it "
            f"is done. Received: {without_secrets(spec.source)!r}"
        )
    return None


def load_shards(store: Store, catalogue: Catalogue, spec: DataSpec, cache_dir: Path, peers: Peers) -> Dataset:
    """Return the data set of the shards in `store`. Raises DataError, TemporaryError, UsageError."""
    if len(set(peers.exchange(catalogue.index_sha256.encode()))) > 1:
        raise DataError(
            "The processes of the run see different shards in the source; give all the same ones. "
            f"Received: {store.uri} on {peers.place.name(peers.place.index)}"
        )
    folder = cache_dir / "shards" / catalogue.index_sha256[:16]
    index = Index(_local_index(store, folder), catalogue)
    if len(index.starts) != len(catalogue.shards) + 1 or index.starts[-1] != len(index):
        raise DataError(
            f"The index of the shards does not fit their list; pack them again. Received: {store.uri}"
        )
    staging = Staging(store, catalogue.shards, folder, spec.staged_mib << 20, spec.shuffle_shards)
    reader = _Reader(index, staging, spec)
    budget_bytes = spec.cache_mib << 20
    pixels = Holding(
        len(index), spec.image_size, budget_bytes, cache_dir / "pixels", reader.decode, reader.follow
    )
    if peers.place.count == 1 and int(np.prod(pixels.shape)) <= budget_bytes:
        pixels.hold(np.arange(len(index)))
    splits = {
        name: _split(name, catalogue, index, staging, pixels, spec)
        for name in SPLITS
        if any(shard.split == name for shard in catalogue.shards)
    }
    summary = catalogue.summary | {
        "source": without_secrets(spec.source),
        "layout": "shards",
        "packed_from": {key: catalogue.summary.get(key) for key in ("source", "layout")},
        # In another order than its source, it is another data set to go on with.
        "digest": f"sha256:{catalogue.index_sha256}",
    }
    return Dataset(
        catalogue.class_names, splits, catalogue.rejected, summary, catalogue.index_sha256, catalogue.warnings
    )


def _local_index(store: Store, folder: Path) -> Path:
    if not is_bucket(store.uri):
        return Path(store.uri) / INDEX
    prepare_folder(folder)
    store.download(INDEX, folder / INDEX)
    return folder / INDEX


def _split(
    name: str, catalogue: Catalogue, index: Index, staging: Staging, pixels: Holding, spec: DataSpec
) -> Split:
    own = [number for number, shard in enumerate(catalogue.shards) if shard.split == name]
    starts = index.starts[[*own, own[-1] + 1]]  # the shards of a split follow each other
    numbers = np.arange(starts[0], starts[-1])
    return Split(
        name=name,
        items=_Items(index, staging, int(starts[0]), int(starts[-1])),
        labels=index.labels[starts[0] : starts[-1]],
        pixels=View(pixels, numbers),
        numbers=numbers,
        contents=(),
        shards=Shards(starts - starts[0], spec.shuffle_shards),
    )


@dataclass(frozen=True)
class _Packed:
    """One image in a shard."""

    name: str
    index: Index
    staging: Staging
    number: int
    encoding: str = "image"

    def read(self) -> bytes:
        """Return its bytes. Raises DataError if they are damaged."""
        shard = int(self.index.shards_of(np.asarray([self.number], np.int64))[0])
        return _read(self.index, self.staging, shard, self.number)


class _Items(Sequence[Source]):
    """The images of a split, whose names are read when they are asked for."""

    def __init__(self, index: Index, staging: Staging, first: int, end: int) -> None:
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

    def __iter__(self):  # type: ignore[no-untyped-def]
        names = self._index.names(self._first, self._end)
        return (self._packed(self._first + place, name) for place, name in enumerate(names))

    def _packed(self, number: int, name: str) -> Source:
        return _Packed(name, self._index, self._staging, number)


class _Reader:
    """Reads and decodes images by their number, in several threads."""

    def __init__(self, index: Index, staging: Staging, spec: DataSpec) -> None:
        self._index, self._staging = index, staging
        self._to_pixels = build_to_pixels(spec)
        # Twice the cores, so that some decode while others wait for the disk.
        self._threads = 2 * len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

    def follow(self, *passes: NDArray[np.int64]) -> None:
        """Hear which images will be decoded next."""
        self._staging.follow(*(self._index.shards_of(numbers).tolist() for numbers in passes))

    def decode(self, numbers: NDArray[np.int64], write: Write) -> None:
        """Decode the images of `numbers`, and `write` their pixels. Raises DataError, TemporaryError."""
        chunk = max(1, min(_LARGEST_CHUNK, len(numbers) // self._threads))
        starts = range(0, len(numbers), chunk)
        for _ in self._pool.map(lambda start: self._decode(numbers[start : start + chunk], write), starts):
            pass

    def _decode(self, numbers: NDArray[np.int64], write: Write) -> None:
        shards = self._index.shards_of(numbers)
        files = [
            _read(self._index, self._staging, int(shard), int(number))
            for shard, number in zip(shards, numbers, strict=True)
        ]
        try:
            pixels = self._to_pixels("image", files)
        except tf.errors.InvalidArgumentError as error:
            raise DataError(
                "An image that could be decoded when it was packed can't be any more; pack the data again. "
                f"Received: {str(error)[:200]}"
            ) from None
        for number, image in zip(numbers, pixels, strict=True):
            write(int(number), image)


def _read(index: Index, staging: Staging, shard: int, number: int) -> bytes:
    place = shard, int(index.offsets[number]), int(index.lengths[number])
    data, expected = staging.read(*place), index.checksums[number]
    if google_crc32c.value(data) != expected and staging.forget(shard):
        data = staging.read(*place)  # the copy may be what is damaged
    if google_crc32c.value(data) != expected:
        raise DataError(
            "A shard is damaged: an image does not match its checksum. Get the shard again, or pack the "
            f"data again. Received: {staging.at(shard)}, byte {index.offsets[number]}"
        )
    return data
