"""Work units for packing shards, which any process can run: `Scan` and `Pack`.

Each unit writes its result to a part file in the store as its last step. A unit whose part file exists is not
repeated.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import tensorflow as tf

from trainer.data.convert import as_file
from trainer.data.ingest import DecodeResult, ImageDecoder
from trainer.data.items import Item
from trainer.data.placeholders import download_placeholders
from trainer.data.progress import SilentProgress
from trainer.data.readers.tf_example import find_offset
from trainer.data.readers.tfrecord import masked_crc
from trainer.errors import DataError
from trainer.spec.schema import DataSpec
from trainer.storage import private_folder, translate_errors, write_all
from trainer.storage.store import open_store

_SMALLEST_SIDE = 8
_RECORD_HEADER_BYTES = 12


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
            results = self._decode(download_placeholders(self.items, cache_dir, folder))
        open_store(uri).write(self.part, json.dumps(results).encode())
        return len(self.items)

    def _decode(self, items: tuple[Item, ...]) -> list[dict[str, object]]:
        # Decoding only checks that it succeeds, so the smallest size is used.
        spec = self.spec.model_copy(update={"image_size": _SMALLEST_SIDE})
        decoder = ImageDecoder(items, spec, SilentProgress())
        decoder.decode_first(np.arange(len(items)), lambda number, pixels: None)
        outcomes = [decoder.results[number] for number in range(len(items))]
        return [
            asdict(outcome) | {"size": find_size(item)} for item, outcome in zip(items, outcomes, strict=True)
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
            items = download_placeholders([packed.item for packed in self.items], cache_dir, folder)
            shard = self._write(path, items)
            store.upload(path, self.name)
        store.write(self.part, json.dumps(asdict(shard)).encode())
        return len(self.items)

    def _write(self, path: Path, items: Sequence[Item]) -> PackedShard:
        shard = PackedShard(0, [], [], [])
        end = 0
        with translate_errors(path), open(path, "wb", buffering=0) as file:
            for packed, item in zip(self.items, items, strict=True):
                image = as_file(_read_unchanged(item, packed.content), item.encoding)
                record, start = build_record(image, item.label, packed.number, item.name)
                shard.offsets.append(end + start)
                shard.lengths.append(len(image))
                shard.checksums.append(int(google_crc32c.value(image)))
                write_all(file, record)
                end += len(record)
        return PackedShard(end, shard.offsets, shard.lengths, shard.checksums)


def read_scan(data: bytes) -> list[tuple[DecodeResult, int]]:
    """Return the outcome and the size of each item from a scan's part file. Raises ValueError, KeyError."""
    return [
        (DecodeResult(result["content"], result["reason"], result["converted"]), int(result["size"]))
        for result in json.loads(data)
    ]


def read_shard(data: bytes) -> PackedShard:
    """Return the contents of a shard's part file. Raises ValueError, TypeError."""
    return PackedShard(**json.loads(data))


def find_size(item: Item) -> int:
    """Return the size of an image in bytes, or 0 if it is inaccessible."""
    try:
        return item.path.stat().st_size if item.length is None else item.length
    except OSError:
        return 0


def _read_unchanged(item: Item, content: str) -> bytes:
    try:
        data = item.read()
    except OSError as error:
        data, reason = b"", f"can't be read: {error.strerror}"
    else:
        reason = "its bytes have changed"
    if hashlib.sha256(data).hexdigest() != content:
        raise DataError(
            "An image changed while the shards were being packed.",
            "Pack the images again, into another folder.",
            received=f"{item.name}, {reason}",
        )
    return data


def divide_items(kind: str, items: Sequence[object], unit_items: int) -> list[tuple[str, range]]:
    """Return the part file name and the range of items of each work unit."""
    starts = range(0, len(items), unit_items)
    return [
        (f"packing-{kind}-{index:06d}.json", range(start, min(start + unit_items, len(items))))
        for index, start in enumerate(starts)
    ]


def build_record(image: bytes, label: str, number: int, name: str) -> tuple[bytes, int]:
    """Return the record of an encoded image, and the byte offset of the image in the record.

    `number` is the class index of the label.
    """
    values = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "image/class/text": _text_feature(label),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
        "image/filename": _text_feature(name),
    }
    example = tf.train.Example(features=tf.train.Features(feature=values))
    body = example.SerializeToString(deterministic=True)
    length = struct.pack("<Q", len(body))
    framed = b"".join(
        [length, struct.pack("<I", masked_crc(length)), body, struct.pack("<I", masked_crc(body))]
    )
    return framed, _RECORD_HEADER_BYTES + find_offset(body, image)


def _text_feature(value: str) -> tf.train.Feature:
    data = value.encode("utf-8", "surrogateescape")
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
