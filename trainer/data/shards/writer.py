"""Packing of a source into shards.

The shards are written first, then their index, then `shards.json`, which marks the dataset as complete. The
assignment of images to shards and the order within a shard depend only on the contents and names of the
images, not on the number of processes that pack them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import google_crc32c
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.data.bucket import download_placeholders
from trainer.data.checks import require_images
from trainer.data.convert import as_file
from trainer.data.dataset import Dataset, Split, assemble, format_contents
from trainer.data.fetch import list_images
from trainer.data.image_store import ImageStore
from trainer.data.ingest import DecodeResult, ImageDecoder, collect_images
from trainer.data.items import Item
from trainer.data.progress import Progress, SilentProgress
from trainer.data.readers import SourceContents
from trainer.data.readers.tfrecord import find_offset, masked_crc
from trainer.data.shards.index import (
    INDEX_FILE,
    LABELS_FILE,
    MANIFEST_FILE,
    RECIPE_FILE,
    IndexColumns,
    Shard,
    ShardManifest,
    hash_recipe,
    read_shard_manifest,
)
from trainer.data.shards.packed import require_single_label
from trainer.data.shards.worker_pool import PART_PREFIX, WorkerPool
from trainer.data.split import usable_items
from trainer.errors import DataError, TemporaryError, UsageError
from trainer.spec.schema import DataSpec
from trainer.storage import hash_file, open_store, private_folder, translate_errors, write_all
from trainer.storage.store import Store

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
        data, reason = b"", f"cannot be read: {error.strerror}"
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


PartContents = TypeVar("PartContents")

_SCAN_ITEMS = 512
# Only settings that determine the contents and order of the shards; the others concern training.
_RECIPE_SETTINGS = ("checksum", "layout", "validation_fraction", "max_rejected", "max_image_pixels")


def make_shards(
    spec: DataSpec, store: Store, shard_bytes: int, pool: WorkerPool, progress: Progress
) -> ShardManifest | None:
    """Pack the source of `spec` into `store`; return the manifest, or None if another machine completes it.

    Work that an interrupted call completed is not repeated. Raises UsageError if `store` contains other
    shards, DataError like `load_dataset`, and TemporaryError.
    """
    require_single_label(spec)
    if spec.group is not None and spec.group.startswith(("duplicates", "exif:")):
        raise UsageError(
            "This data.group cannot be used for shards, which are split before the images are read.",
            "Use name:REGEX or column:NAME.",
            received=f"data.group={spec.group}",
        )
    # Each process downloads only the bucket images of its own share.
    read = list_images(spec, pool.cache_dir, progress, placeholders=True)
    read = read._replace(items=usable_items(read.items, spec.held_out))
    require_images(read.items, read.rejections, spec.source)
    recipe = _build_recipe(spec, read.items, shard_bytes)
    if (manifest := read_shard_manifest(store)) is not None:
        _require_same(manifest.recipe, recipe, store)
        return manifest
    store.require_writable()
    _write_recipe(store, recipe)
    try:
        return _pack_shards(read, spec, recipe, store, shard_bytes, pool, progress)
    except TemporaryError:
        # Another process with the same work may have completed it and removed the work files.
        manifest = read_shard_manifest(store)
        if manifest is None or manifest.recipe != recipe:
            raise
        _remove_part_files(store)
        return manifest


def _pack_shards(
    read: SourceContents,
    spec: DataSpec,
    recipe: str,
    store: Store,
    shard_bytes: int,
    pool: WorkerPool,
    progress: Progress,
) -> ShardManifest | None:
    items = read.items
    ranges = divide_items("scan", items, _SCAN_ITEMS)
    scans = [Scan(part, tuple(items[range.start : range.stop]), spec) for part, range in ranges]
    pool.run(scans, store, "Reading", progress)
    results = [result for scan in scans for result in _read_part(store, scan, read_scan, len)]
    dataset = _assemble(read, [outcome for outcome, _ in results], spec)
    progress.on_message(format_contents(dataset))
    planned = plan_shards(dataset, [size for _, size in results], shard_bytes)
    packs = [_build_pack(shard, dataset, items, number) for number, shard in enumerate(planned)]
    pool.run(packs, store, "Packing", progress, should_wait=not pool.index)
    if pool.index:
        return None
    return _finish(planned, packs, dataset, recipe, store, pool.cache_dir)


def _build_recipe(spec: DataSpec, items: Sequence[Item], shard_bytes: int) -> str:
    settings = spec.model_dump(mode="json", include=set(_RECIPE_SETTINGS))
    # Omitted at its default, so that the recipe matches that of shards packed by earlier versions.
    settings |= {"held_out": spec.held_out} if spec.held_out != "auto" else {}
    settings |= {"group": spec.group} if spec.group is not None else {}
    # The size detects an image that was replaced under the same name.
    listed = [[item.name, item.label, item.split, find_size(item)] for item in items]
    return hash_recipe({"settings": settings, "shard_bytes": shard_bytes, "items": listed})


def _write_recipe(store: Store, recipe: str) -> None:
    """Write the recipe to `store`, so that no other dataset is packed there in the meantime."""
    if not store.create(RECIPE_FILE, recipe.encode()):
        file = store.read(RECIPE_FILE)
        _require_same(recipe if file is None else file.data.decode(), recipe, store)


def _require_same(existing: str, recipe: str, store: Store) -> None:
    if existing != recipe:
        raise UsageError(
            "The output contains shards of other images or with other settings.",
            "Pack into another folder, or remove these shards.",
            received=store.uri,
        )


def _assemble(read: SourceContents, outcomes: Sequence[DecodeResult], spec: DataSpec) -> Dataset:
    shape = spec.pixel_format.shape
    no_pixels = ImageStore(len(read.items), shape, 0, Path(), lambda numbers, write: None)
    decoded = collect_images(read.items, outcomes, no_pixels)
    return assemble(read, decoded, spec, lambda rejected: None)


def _build_pack(planned: PlannedShard, dataset: Dataset, items: Sequence[Item], number: int) -> Pack:
    split = dataset.splits[planned.split]
    packed = tuple(
        PackedItem(items[split.numbers[row]], split.contents[row], int(split.labels[row]))
        for row in planned.rows
    )
    return Pack(f"packing-pack-{number:06d}.json", planned.name, packed)


def _read_part(
    store: Store,
    work: Scan | Pack,
    read: Callable[[bytes], PartContents],
    count: Callable[[PartContents], int],
) -> PartContents:
    """Return the result of `work` from its part file. Raises TemporaryError if missing or incomplete."""
    name = work.part
    file = store.read(name)
    if file is None:
        raise TemporaryError(
            "A part file is missing: another machine has completed the shards, or the file was deleted.",
            "Run the same command again.",
            received=store.at(name),
        )
    try:
        contents = read(file.data)
        if count(contents) != len(work.items):
            raise ValueError("wrong number of images")
        return contents
    except (ValueError, KeyError, TypeError):
        store.remove(name)  # so that the work is repeated
        raise TemporaryError(
            "A part file is damaged and was removed.",
            "Run the same command again to repeat this unit of work.",
            received=store.at(name),
        ) from None


def _finish(
    planned: Sequence[PlannedShard],
    packs: Sequence[Pack],
    dataset: Dataset,
    recipe: str,
    store: Store,
    cache_dir: Path,
) -> ShardManifest:
    """Write the index, the labels and the manifest, then remove the work files."""
    written = [_read_part(store, pack, read_shard, lambda shard: len(shard.offsets)) for pack in packs]
    _require_complete(packs, written, store)
    with private_folder(cache_dir / "packing") as folder:
        path = folder / INDEX_FILE
        _build_columns(packs, written).write(path)
        digest = hash_file(path)["sha256"]
        store.upload(path, INDEX_FILE)
    store.write(
        LABELS_FILE, "".join(f"{name}\n" for name in dataset.class_names).encode("utf-8", "surrogateescape")
    )
    shards = tuple(
        Shard(shard.name, shard.split, len(shard.rows), packed.size)
        for shard, packed in zip(planned, written, strict=True)
    )
    manifest = ShardManifest(
        shards, dataset.class_names, dataset.summary, dataset.warnings, dataset.rejected, recipe, digest
    )
    store.create(MANIFEST_FILE, manifest.as_json())
    _remove_part_files(store)
    return manifest


def _remove_part_files(store: Store) -> None:
    for entry in store.entries(PART_PREFIX):
        store.remove(entry.name)


def _require_complete(packs: Sequence[Pack], written: Sequence[PackedShard], store: Store) -> None:
    sizes = {entry.name: entry.size for entry in store.entries()}
    for pack, shard in zip(packs, written, strict=True):
        if sizes.get(pack.name) != shard.size:
            store.remove(pack.part)  # so that the shard is packed again
            raise TemporaryError(
                "A shard was changed or deleted after it was written.",
                "Run the same command again to pack it again.",
                received=f"{store.at(pack.name)}, {sizes.get(pack.name, 'no')} bytes instead of {shard.size}",
            )


def _build_columns(packs: Sequence[Pack], written: Sequence[PackedShard]) -> IndexColumns:
    items = [item for pack in packs for item in pack.items]
    return IndexColumns(
        starts=np.cumsum([0, *(len(pack.items) for pack in packs)], dtype=np.int64),
        labels=np.asarray([item.number for item in items], np.int32),
        offsets=np.asarray([value for shard in written for value in shard.offsets], np.int64),
        lengths=np.asarray([value for shard in written for value in shard.lengths], np.int32),
        checksums=np.asarray([value for shard in written for value in shard.checksums], np.uint32),
        contents=np.frombuffer(bytes.fromhex("".join(item.content for item in items)), np.uint8).reshape(
            -1, 32
        ),
        names=[item.item.name for item in items],
    )


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
        for shard in _divide_split(split, np.asarray(sizes), shard_bytes)
    ]


def _divide_split(split: Split, sizes: NDArray[np.int64], shard_bytes: int) -> list[PlannedShard]:
    # Sort by hash: adjacent files of a folder, such as images of one day, must not be adjacent in training.
    keys = [_sort_key(item.name, content) for item, content in zip(split.items, split.contents, strict=True)]
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


def _sort_key(name: str, content: str) -> bytes:
    return hashlib.sha256(f"{content}\0{name}".encode("utf-8", "surrogateescape")).digest()
