"""WebDataset tar files, in which an image and its label are adjacent members with the same name.

A tar contains `000001.jpg` with `000001.cls`, a number or a name, or with `000001.json`, which has a `label`.
Names of numeric labels come from labels.txt, classes.txt or classnames.txt in the same folder or in the
source's root. Each image becomes one item with its byte range in the tar; nothing is unpacked.
Format: https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from trainer.data.archive_errors import reading
from trainer.data.formats import SNIFF_BYTES, names_a_picture, picture_format
from trainer.data.items import Item, Rejection
from trainer.data.readers.read_result import (
    ReadResult,
    display_name,
    files_of_splits,
    read_label_names,
    split_among_words,
    split_named,
)
from trainer.errors import DataError
from trainer.sanitize import printable

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_GZIP_MAGIC = b"\x1f\x8b"
_LABEL_ENDINGS = ("cls", "json")
"""In order of precedence."""
_JSON_LABELS = ("label", "cls", "class", "class_name", "label_name")
_CLASS_NAME_FILES = ("labels.txt", "classes.txt", "classnames.txt")
_MAX_LABEL_BYTES = 1 << 20
_PROBED_SAMPLES = 50
"""Number of samples by which a tar is recognized."""


@dataclass
class _Sample:
    """Members with the same key: the byte ranges of the images and the contents of the label members."""

    key: str
    pictures: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, offset and size in bytes."""
    labels: dict[str, bytes] = field(default_factory=dict)
    """By extension."""

    def label(self) -> int | str | None:
        """Return the label as a number or a name, or None if there is none."""
        for ending in _LABEL_ENDINGS:
            if ending in self.labels and (label := _parse_label(ending, self.labels[ending])) is not None:
                return label
        return None


def find_webdataset_files(folder: Path) -> list[Path]:
    """Return the tars in `folder` and in its split folders that are WebDatasets.

    Raises DataError for a compressed one.
    """
    return [path for path in find_tars(folder) if is_webdataset(path)]


def find_tars(folder: Path) -> list[Path]:
    """Return all tars in `folder` and in its split folders."""
    files = files_of_splits(folder)
    return [path for path in files if path.name.lower().endswith(_ENDINGS) and path.is_file()]


def is_webdataset(path: Path) -> bool:
    """Return whether each of the first images of a tar has a label member with the same name.

    Raises DataError if so and the tar is compressed, because single images cannot be read from it.
    """
    try:
        samples = list(islice(_read_samples(path), _PROBED_SAMPLES))
    except DataError:
        return False  # unpacking reports the error
    labelled = [sample.label() is not None for sample in samples if sample.pictures]
    has_labels = bool(labelled) and all(labelled)
    if has_labels:
        _require_uncompressed(path)
    return has_labels


def _require_uncompressed(path: Path) -> None:
    if _is_compressed(path):
        raise DataError(
            "A WebDataset tar is compressed, so single images cannot be read from it.",
            "Decompress it with gunzip.",
            received=printable(str(path)),
        )


def read_webdataset_files(files: list[Path], root: Path) -> ReadResult:
    """Read the labels of `files`; item names consist of tar and member, such as `train-000.tar#000001.jpg`.

    The split is that of a word in the tar's name, or of its folder's name, or None. Raises DataError for a
    tar that is unreadable, damaged or compressed.
    """
    result = ReadResult()
    for path in files:
        _require_uncompressed(path)
        split = split_among_words(path.name) or split_named(path.parent.name)
        names = _read_class_names(path.parent, root if root.is_dir() else root.parent)
        item_names: set[str] = set()
        for sample in _read_samples(path):
            name = f"{display_name(path, root)}#{printable(sample.key)}"
            item = _build_item(sample, Item(name, "", split, path), names)
            if isinstance(item, Item) and item.name in item_names:
                item = "the tar has two members with this name"
            if isinstance(item, str):
                result.rejections.append(Rejection(name, item))
                continue
            item_names.add(item.name)
            result.items.append(item)
    return result


def _build_item(sample: _Sample, blank: Item, names: dict[int, str]) -> Item | str:
    """Return the item with its label and byte range, or the reason why the sample cannot be used."""
    label = sample.label()
    if len(sample.pictures) != 1:
        return f"the sample has {len(sample.pictures) or 'no'} images instead of one"
    if label is None:
        return f"no label: the sample has no .{' or .'.join(_LABEL_ENDINGS)} member with a label"
    if isinstance(label, int) and names and label not in names:
        return f"unknown label: {label} is not in the file with class names"
    text = names.get(label, str(label)) if isinstance(label, int) else label
    member, start, length = sample.pictures[0]
    name = f"{blank.name.rpartition('#')[0]}#{printable(member)}"
    return Item(name, printable(text), blank.split, blank.path, start, length)


def _parse_label(ending: str, data: bytes) -> int | str | None:
    """Return the label in a member, or None if it has no valid label."""
    value: object = data.decode("utf-8", "replace").strip()
    if ending == "json":
        try:
            metadata = json.loads(data)
        except (ValueError, RecursionError):
            return None
        fields = metadata if isinstance(metadata, dict) else {}
        value = next((fields[key] for key in _JSON_LABELS if key in fields), None)
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() else value or None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_class_names(*folders: Path) -> dict[int, str]:
    files = [folder / name for folder in folders for name in _CLASS_NAME_FILES]
    return next((names for file in files if (names := read_label_names(file))), {})


def _read_samples(path: Path) -> Iterator[_Sample]:
    """Yield the samples of a tar: adjacent members with the same name up to the first dot.

    Raises DataError.
    """
    sample: _Sample | None = None
    with reading(path), open(path, "rb") as file, tarfile.open(path, "r:*") as tar:
        is_uncompressed = not _is_compressed(path)
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all members in memory
            folder, _, base = member.name.rpartition("/")
            key, _, ending = base.partition(".")
            if not member.isfile() or member.issparse() or not key:
                continue
            key = f"{folder}/{key}" if folder else key
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
            _add_member(sample, member, ending.lower(), file if is_uncompressed else None, tar)
    if sample is not None:
        yield sample


def _add_member(
    sample: _Sample, member: tarfile.TarInfo, ending: str, file: BinaryIO | None, tar: tarfile.TarFile
) -> None:
    """Add a label or image member to `sample`; ignore other members."""

    def read(size: int) -> bytes:
        if file is None:
            stream = tar.extractfile(member)
            return stream.read(size) if stream else b""
        file.seek(member.offset_data)
        return file.read(min(size, member.size))

    if ending in _LABEL_ENDINGS:
        sample.labels[ending] = read(_MAX_LABEL_BYTES)
    elif names_a_picture(f"x.{ending}") or picture_format(read(SNIFF_BYTES)):
        sample.pictures.append((member.name, member.offset_data, member.size))


def _is_compressed(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == _GZIP_MAGIC
