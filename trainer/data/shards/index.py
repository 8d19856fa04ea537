"""Index and manifest of a sharded dataset.

`Index` has one column per image property. `ShardManifest` is the manifest, which describes the whole dataset.
Both are files in the folder or bucket of the shards. `shards.json` is written last: the dataset is incomplete
without it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.items import SPLITS, Rejection
from trainer.errors import DataError
from trainer.storage import hash_file
from trainer.storage.store import Store

MANIFEST_FILE = "shards.json"
INDEX_FILE = "index.npys"
"""Concatenated arrays in NumPy's .npy format."""
LABELS_FILE = "labels.txt"
RECIPE_FILE = "packing-recipe.txt"
"""Recipe of the shards, which exists only while they are being packed."""
_FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """One shard file; all its images belong to one split."""

    name: str
    split: str
    images: int
    size: int
    """Size in bytes."""


@dataclass(frozen=True)
class ShardManifest:
    """Manifest of a sharded dataset."""

    shards: tuple[Shard, ...]
    class_names: tuple[str, ...]
    summary: dict[str, Any]
    """Same contents as dataset.json."""
    warnings: tuple[str, ...]
    rejected: tuple[Rejection, ...]
    recipe: str
    """SHA-256 of sources and settings, 64 hex digits; equal for equal sources and settings."""
    index_sha256: str

    def as_json(self) -> bytes:
        """Return the contents of shards.json."""
        values = {"format": _FORMAT} | asdict(self)
        return json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"


def read_shard_manifest(store: Store) -> ShardManifest | None:
    """Return the manifest in `store`, or None if there is no shards.json. Raises DataError."""
    file = store.read(MANIFEST_FILE)
    if file is None:
        return None
    try:
        values = json.loads(file.data.decode("utf-8", "surrogateescape"))
        if values.pop("format") != _FORMAT:
            raise ValueError("another version of trainer wrote it")
        manifest = ShardManifest(
            shards=tuple(Shard(**shard) for shard in values.pop("shards")),
            rejected=tuple(Rejection(**rejection) for rejection in values.pop("rejected")),
            class_names=tuple(values.pop("class_names")),
            warnings=tuple(values.pop("warnings")),
            **values,
        )
        _require_valid(manifest)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"The manifest of the shards is invalid: {error}.",
            "Pack the shards again with `trainer shard`.",
            received=store.at(MANIFEST_FILE),
        ) from None


def _require_valid(manifest: ShardManifest) -> None:
    """Raise ValueError for values that `trainer shard` never writes, such as a name outside the folder."""
    if not re.fullmatch(r"[0-9a-f]{16,}", manifest.recipe):
        raise ValueError(f"{manifest.recipe!r} is not a digest")
    for shard in manifest.shards:
        if shard.split not in SPLITS or not re.fullmatch(r"[a-z]+-\d+-of-\d+\.tfrecord", shard.name):
            raise ValueError(f"{shard.name!r} of split {shard.split!r} is not a shard")
    if "train" not in {shard.split for shard in manifest.shards}:
        raise ValueError("it has no shards for training")


@dataclass(frozen=True)
class IndexColumns:
    """Index columns, with one row per image in the order of the shards."""

    starts: NDArray[np.int64]
    """Number of the first image of each shard, followed by the number of images: [shards + 1]."""
    labels: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """Offset of the encoded image in its shard, in bytes."""
    lengths: NDArray[np.int32]
    """Size of the encoded image in bytes."""
    checksums: NDArray[np.uint32]
    """CRC-32C of the encoded image."""
    contents: NDArray[np.uint8]
    """SHA-256 of the original image in the source: [images, 32]."""
    names: Sequence[str]

    def write(self, path: Path) -> None:
        """Write the columns to the file `path`. Raises OSError."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in self.names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        text = np.frombuffer(b"".join(encoded), np.uint8)
        with open(path, "wb") as file:
            for column in (*self._numbers(), self.contents, ends, text):
                np.save(file, column, allow_pickle=False)

    def _numbers(self) -> tuple[NDArray[Any], ...]:
        return self.starts, self.labels, self.offsets, self.lengths, self.checksums


class Index:
    """IndexColumns of an index file; names and content digests stay in the file."""

    def __init__(self, path: Path, manifest: ShardManifest) -> None:
        """Read and verify the file `path`. Raises DataError if it does not match `manifest`."""
        self._path = path
        try:
            if hash_file(path)["sha256"] != manifest.index_sha256:
                raise ValueError("its checksum is not that in shards.json")
            with open(path, "rb") as file:
                self.starts, self.labels, self.offsets, self.lengths, self.checksums = (
                    np.load(file, allow_pickle=False) for _ in range(5)
                )
                self._names_offset = file.tell()
            if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < len(
                manifest.class_names
            ):
                raise ValueError("it has labels that are not in shards.json")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"The index of the shards is invalid: {error}.",
                "Pack the shards again with `trainer shard`.",
                received=path,
            ) from None

    def __len__(self) -> int:
        return len(self.labels)

    def shards_of(self, numbers: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the shard of each image in `numbers`, int64 [n]."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def names(self, first: int, end: int) -> tuple[str, ...]:
        """Return the names of the images from `first` up to, but not including, `end`."""
        with open(self._path, "rb") as file:
            file.seek(self._names_offset)
            np.load(file)
            ends, text = np.load(file), np.load(file).tobytes()
        bounds = np.concatenate([[0], ends])
        return tuple(
            text[bounds[number] : bounds[number + 1]].decode("utf-8", "surrogateescape")
            for number in range(first, end)
        )


def hash_recipe(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of `values`, serialized as JSON, in hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()
