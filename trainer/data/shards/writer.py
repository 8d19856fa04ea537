"""Packing of a source into shards.

The shards are written first, then their index, then `shards.json`, which marks the dataset as complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from trainer.data.checks import require_images
from trainer.data.dataset import Dataset, assemble, format_contents
from trainer.data.fetch import list_images
from trainer.data.image_store import ImageStore
from trainer.data.ingest import DecodeResult, collect_images
from trainer.data.items import Item
from trainer.data.progress import Progress
from trainer.data.readers import SourceContents
from trainer.data.shards.index import (
    CATALOGUE,
    INDEX,
    JOURNAL,
    LABELS,
    Columns,
    Shard,
    ShardManifest,
    read_catalogue,
    recipe_of,
)
from trainer.data.shards.pack import (
    Pack,
    PackedItem,
    PackedShard,
    Scan,
    parts_of,
    read_scan,
    read_shard,
    size_of,
)
from trainer.data.shards.packed import require_single
from trainer.data.shards.plan import PlannedShard, plan_shards
from trainer.data.shards.worker_pool import NOTES, WorkerPool
from trainer.data.split import usable_items
from trainer.errors import TemporaryError, UsageError
from trainer.spec.schema import DataSpec
from trainer.storage import hash_file, private_folder
from trainer.storage.store import Store

Noted = TypeVar("Noted")

_TOGETHER = 512
# Only settings that determine the contents and order of the shards; the others concern training.
_SETTINGS = ("checksum", "layout", "validation_fraction", "max_rejected", "max_image_pixels")


def make_shards(
    spec: DataSpec, store: Store, shard_bytes: int, crew: WorkerPool, progress: Progress
) -> ShardManifest | None:
    """Pack the source of `spec` into `store`; return the manifest, or None if another machine completes it.

    Work that an interrupted call completed is not repeated. Raises UsageError if `store` contains other
    shards, DataError like `load_dataset`, and TemporaryError.
    """
    require_single(spec)
    # Each process downloads only the bucket images of its own share.
    read = list_images(spec, crew.cache_dir, progress, placeholders=True)
    read = read._replace(items=usable_items(read.items, spec.held_out))
    require_images(read.items, read.rejections, spec.source)
    recipe = _recipe(spec, read.items, shard_bytes)
    if (found := read_catalogue(store)) is not None:
        _require_same(found.recipe, recipe, store)
        return found
    store.require_writable()
    _begin(store, recipe)
    try:
        return _packed(read, spec, recipe, store, shard_bytes, crew, progress)
    except TemporaryError:
        # Another process with the same work may have completed it and removed the work files.
        found = read_catalogue(store)
        if found is None or found.recipe != recipe:
            raise
        _remove_notes(store)
        return found


def _packed(
    read: SourceContents,
    spec: DataSpec,
    recipe: str,
    store: Store,
    shard_bytes: int,
    crew: WorkerPool,
    progress: Progress,
) -> ShardManifest | None:
    items = read.items
    ranges = parts_of("scan", items, _TOGETHER)
    scans = [Scan(part, tuple(items[range.start : range.stop]), spec) for part, range in ranges]
    crew.do(scans, store, "Reading", progress)
    seen = [each for scan in scans for each in _part(store, scan, read_scan, len)]
    dataset = _assembled(read, [outcome for outcome, _ in seen], spec)
    progress.say(format_contents(dataset))
    planned = plan_shards(dataset, [size for _, size in seen], shard_bytes)
    packs = [_pack(each, dataset, items, number) for number, each in enumerate(planned)]
    crew.do(packs, store, "Packing", progress, waits=not crew.index)
    if crew.index:
        return None
    return _finish(planned, packs, dataset, recipe, store, crew.cache_dir)


def _recipe(spec: DataSpec, items: Sequence[Item], shard_bytes: int) -> str:
    settings = spec.model_dump(mode="json", include=set(_SETTINGS))
    # Omitted at its default, so that the recipe matches that of shards packed by earlier versions.
    settings |= {"held_out": spec.held_out} if spec.held_out != "auto" else {}
    # The size detects an image that was replaced under the same name.
    listed = [[item.name, item.label, item.split, size_of(item)] for item in items]
    return recipe_of({"settings": settings, "shard_bytes": shard_bytes, "items": listed})


def _begin(store: Store, recipe: str) -> None:
    """Write the recipe to `store`, so that no other dataset is packed there in the meantime."""
    if not store.create(JOURNAL, recipe.encode()):
        found = store.read(JOURNAL)
        _require_same(recipe if found is None else found.data.decode(), recipe, store)


def _require_same(found: str, recipe: str, store: Store) -> None:
    if found != recipe:
        raise UsageError(
            "Shards of other images, or made with other settings, are there; pack these into another folder, "
            "or remove those.",
            received=store.uri,
        )


def _assembled(read: SourceContents, outcomes: Sequence[DecodeResult], spec: DataSpec) -> Dataset:
    shape = spec.pixel_format.shape
    no_pixels = ImageStore(len(read.items), shape, 0, Path(), lambda numbers, write: None)
    decoded = collect_images(read.items, outcomes, no_pixels)
    return assemble(read, decoded, spec, lambda rejected: None)


def _pack(planned: PlannedShard, dataset: Dataset, items: Sequence[Item], number: int) -> Pack:
    split = dataset.splits[planned.split]
    packed = tuple(
        PackedItem(items[split.numbers[row]], split.contents[row], int(split.labels[row]))
        for row in planned.rows
    )
    return Pack(f"packing-pack-{number:06d}.json", planned.name, packed)


def _part(
    store: Store, work: Scan | Pack, read: Callable[[bytes], Noted], count: Callable[[Noted], int]
) -> Noted:
    """Return the result of `work` from its part file. Raises TemporaryError if missing or incomplete."""
    name = work.part
    found = store.read(name)
    if found is None:
        raise TemporaryError(
            "The notes of what was packed are gone: another machine has finished the shards, or someone "
            "removed them; start again.",
            received=store.at(name),
        )
    try:
        noted = read(found.data)
        if count(noted) != len(work.items):
            raise ValueError("it is of other images")
        return noted
    except (ValueError, KeyError, TypeError):
        store.remove(name)  # so that the work is repeated
        raise TemporaryError(
            "The notes of what was packed can't be read; start again, that piece is then done anew.",
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
    written = [_part(store, pack, read_shard, lambda found: len(found.offsets)) for pack in packs]
    _require_there(packs, written, store)
    with private_folder(cache_dir / "packing") as folder:
        path = folder / INDEX
        _columns(packs, written).write(path)
        digest = hash_file(path)["sha256"]
        store.upload(path, INDEX)
    store.write(
        LABELS, "".join(f"{name}\n" for name in dataset.class_names).encode("utf-8", "surrogateescape")
    )
    shards = tuple(
        Shard(each.name, each.split, len(each.rows), found.size)
        for each, found in zip(planned, written, strict=True)
    )
    catalogue = ShardManifest(
        shards, dataset.class_names, dataset.summary, dataset.warnings, dataset.rejected, recipe, digest
    )
    store.create(CATALOGUE, catalogue.as_json())
    _remove_notes(store)
    return catalogue


def _remove_notes(store: Store) -> None:
    for entry in store.entries(NOTES):
        store.remove(entry.name)


def _require_there(packs: Sequence[Pack], written: Sequence[PackedShard], store: Store) -> None:
    sizes = {entry.name: entry.size for entry in store.entries()}
    for pack, found in zip(packs, written, strict=True):
        if sizes.get(pack.name) != found.size:
            store.remove(pack.part)  # so that the shard is packed again
            raise TemporaryError(
                "A shard is not as it was written any more; start again, it is then packed anew.",
                received=f"{store.at(pack.name)}, {sizes.get(pack.name, 'no')} bytes instead of {found.size}",
            )


def _columns(packs: Sequence[Pack], written: Sequence[PackedShard]) -> Columns:
    items = [each for pack in packs for each in pack.items]
    return Columns(
        starts=np.cumsum([0, *(len(pack.items) for pack in packs)], dtype=np.int64),
        labels=np.asarray([each.number for each in items], np.int32),
        offsets=np.asarray([value for each in written for value in each.offsets], np.int64),
        lengths=np.asarray([value for each in written for value in each.lengths], np.int32),
        checksums=np.asarray([value for each in written for value in each.checksums], np.uint32),
        contents=np.frombuffer(bytes.fromhex("".join(each.content for each in items)), np.uint8).reshape(
            -1, 32
        ),
        names=[each.item.name for each in items],
    )
