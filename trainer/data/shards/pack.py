"""Work units for packing shards, which any process can run: `Scan` and `Pack`.

Each unit writes its result to a part file in the store as its last step. A unit whose part file exists is not
repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from trainer.data.convert import as_file
from trainer.data.ingest import DecodeResult, ImageDecoder
from trainer.data.items import Item
from trainer.data.placeholders import download_placeholders
from trainer.data.progress import SilentProgress
from trainer.data.shards.records import make_record
from trainer.errors import DataError
from trainer.spec.schema import DataSpec
from trainer.storage import private_folder, translate_errors, write_all
from trainer.storage.store import open_store

_SMALLEST_SIDE = 8


@dataclass(frozen=True)
class Scan:
    """Work unit that decodes items to check them."""

    part: str
    """Name of the part file with the results."""
    items: tuple[Item, ...]
    spec: DataSpec

    def run(self, uri: str, cache_dir: Path) -> int:
        """Read and decode all items, write the outcomes to the part file, and return the number of items."""
        with private_folder(cache_dir / "packing") as folder:
            found = self._look(download_placeholders(self.items, cache_dir, folder))
        open_store(uri).write(self.part, json.dumps(found).encode())
        return len(self.items)

    def _look(self, items: tuple[Item, ...]) -> list[dict[str, object]]:
        # Decoding only checks that it succeeds, so the smallest size is used.
        spec = self.spec.model_copy(update={"image_size": _SMALLEST_SIDE})
        decoder = ImageDecoder(items, spec, SilentProgress())
        decoder.decode_first(np.arange(len(items)), lambda number, pixels: None)
        outcomes = [decoder.results[number] for number in range(len(items))]
        return [
            asdict(outcome) | {"size": size_of(item)} for item, outcome in zip(items, outcomes, strict=True)
        ]


@dataclass(frozen=True)
class PackedItem:
    """An item of a shard with its digest and label number."""

    item: Item
    content: str
    """SHA-256 of its bytes."""
    number: int
    """Class index of its label."""


@dataclass(frozen=True)
class PackedShard:
    """Size of a written shard, and offset, size and CRC-32C of each image; stored in its part file."""

    size: int
    offsets: list[int]
    lengths: list[int]
    checksums: list[int]


@dataclass(frozen=True)
class Pack:
    """Work unit that writes one shard."""

    part: str
    name: str
    items: tuple[PackedItem, ...]

    def run(self, uri: str, cache_dir: Path) -> int:
        """Write the shard, then the part file; return the number of images.

        Raises DataError if an item has changed since the scan.
        """
        store = open_store(uri)
        with private_folder(cache_dir / "packing") as folder:
            path = folder / self.name
            items = download_placeholders([each.item for each in self.items], cache_dir, folder)
            packed = self._write(path, items)
            store.upload(path, self.name)
        store.write(self.part, json.dumps(asdict(packed)).encode())
        return len(self.items)

    def _write(self, path: Path, items: Sequence[Item]) -> PackedShard:
        packed = PackedShard(0, [], [], [])
        end = 0
        with translate_errors(path), open(path, "wb", buffering=0) as file:
            for each, item in zip(self.items, items, strict=True):
                image = as_file(_unchanged(item, each.content), item.encoding)
                record, start = make_record(image, item.label, each.number, item.name)
                packed.offsets.append(end + start)
                packed.lengths.append(len(image))
                packed.checksums.append(int(google_crc32c.value(image)))
                write_all(file, record)
                end += len(record)
        return PackedShard(end, packed.offsets, packed.lengths, packed.checksums)


def read_scan(data: bytes) -> list[tuple[DecodeResult, int]]:
    """Return the outcome and the size of each item from a scan's part file. Raises ValueError, KeyError."""
    return [
        (DecodeResult(each["content"], each["reason"], each["converted"]), int(each["size"]))
        for each in json.loads(data)
    ]


def read_shard(data: bytes) -> PackedShard:
    """Return the contents of a shard's part file. Raises ValueError, TypeError."""
    return PackedShard(**json.loads(data))


def size_of(item: Item) -> int:
    """Return the size of an image in bytes, or 0 if it is inaccessible."""
    try:
        return item.path.stat().st_size if item.length is None else item.length
    except OSError:
        return 0


def _unchanged(item: Item, content: str) -> bytes:
    try:
        data = item.read()
    except OSError as error:
        data, reason = b"", f"can't be read: {error.strerror}"
    else:
        reason = "other bytes than before"
    if hashlib.sha256(data).hexdigest() != content:
        raise DataError(
            "An image changed while the shards were packed; pack them again into another folder.",
            received=f"{item.name}, {reason}",
        )
    return data


def parts_of(kind: str, items: Sequence[object], together: int) -> list[tuple[str, range]]:
    """Return the part file name and the range of items of each work unit."""
    starts = range(0, len(items), together)
    return [
        (f"packing-{kind}-{index:06d}.json", range(start, min(start + together, len(items))))
        for index, start in enumerate(starts)
    ]
