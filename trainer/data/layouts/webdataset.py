"""WebDataset: tar files in which an image and its label are neighbours of one name.

In: tars of `000001.jpg` with `000001.cls`, a number or a name, or with `000001.json`, which has a `label`;
with names of the numbers in a labels.txt, classes.txt or classnames.txt beside them. Out: one item for each
image, which says where in the tar it lies: nothing is unpacked.
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

from trainer.data.damage import reading
from trainer.data.formats import SNIFF_BYTES, names_a_picture, picture_format
from trainer.data.items import Item, Rejection
from trainer.data.layouts.found import Found, name_of, split_among_words, split_named
from trainer.data.layouts.labels import files_of_splits, read_label_names
from trainer.exits import DataError
from trainer.printable import printable

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_GZIP_MAGIC = b"\x1f\x8b"
_LABEL_ENDINGS = ("cls", "json")
"""The first that is there decides."""
_JSON_LABELS = ("label", "cls", "class", "class_name", "label_name")
_NAMES_FILES = ("labels.txt", "classes.txt", "classnames.txt")
_MOST_LABEL_BYTES = 1 << 20
_LOOKED_AT = 50
"""Samples by which a tar is recognised."""


@dataclass
class _Sample:
    """The members of one name: where each picture lies, and what the label's members hold."""

    key: str
    pictures: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, start and bytes."""
    labels: dict[str, bytes] = field(default_factory=dict)
    """By ending."""

    def label(self) -> int | str | None:
        """Return the number or the name of the label, None if there is none."""
        for ending in _LABEL_ENDINGS:
            if ending in self.labels and (label := _label(ending, self.labels[ending])) is not None:
                return label
        return None


def find_webdataset_files(folder: Path) -> list[Path]:
    """Return the tars in `folder`, and in its folders that are named like splits, that are WebDatasets.

    Raises DataError for one that is compressed.
    """
    return [path for path in find_tars(folder) if is_webdataset(path)]


def find_tars(folder: Path) -> list[Path]:
    """Return all tars there."""
    files = files_of_splits(folder)
    return [path for path in files if path.name.lower().endswith(_ENDINGS) and path.is_file()]


def is_webdataset(path: Path) -> bool:
    """Return whether the first images of a tar all have a label beside them, of the same name.

    Raises DataError if they do and the tar is compressed, so that images can't be read one by one.
    """
    try:
        samples = list(islice(_samples(path), _LOOKED_AT))
    except DataError:
        return False  # unpacking it reports what is wrong
    labelled = [sample.label() is not None for sample in samples if sample.pictures]
    is_one = bool(labelled) and all(labelled)
    if is_one:
        _require_plain(path)
    return is_one


def _require_plain(path: Path) -> None:
    if _is_compressed(path):
        raise DataError(
            "A WebDataset is compressed, so that its images can't be read one by one; decompress it with "
            f"gunzip. Received: {printable(str(path))}"
        )


def read_webdataset_files(files: list[Path], root: Path) -> Found:
    """Read the labels of `files`; items are named by tar and member, such as `train-000.tar#000001.jpg`.

    The split is what a word of the tar's name says, or its folder's name, or None. Raises DataError for a
    tar that is unreadable or damaged.
    """
    found = Found()
    for path in files:
        _require_plain(path)
        split = split_among_words(path.name) or split_named(path.parent.name)
        names = _label_names(path.parent, root if root.is_dir() else root.parent)
        seen: set[str] = set()
        for sample in _samples(path):
            name = f"{name_of(path, root)}#{printable(sample.key)}"
            item = _item(sample, Item(name, "", split, path), names)
            if isinstance(item, Item) and item.name in seen:
                item = "the tar has two members of this name"
            if isinstance(item, str):
                found.rejections.append(Rejection(name, item))
                continue
            seen.add(item.name)
            found.items.append(item)
    return found


def _item(sample: _Sample, blank: Item, names: dict[int, str]) -> Item | str:
    """Return the item with its label and place, or the reason why the sample can't be used."""
    label = sample.label()
    if len(sample.pictures) != 1:
        return f"the sample has {len(sample.pictures) or 'no'} images; there must be one"
    if label is None:
        return f"no label: the sample has no .{' or .'.join(_LABEL_ENDINGS)} with one"
    if isinstance(label, int) and names and label not in names:
        return f"unknown label: {label} has no name beside the tar"
    text = names.get(label, str(label)) if isinstance(label, int) else label
    member, start, length = sample.pictures[0]
    name = f"{blank.name.rpartition('#')[0]}#{printable(member)}"
    return Item(name, printable(text), blank.split, blank.path, start, length)


def _label(ending: str, data: bytes) -> int | str | None:
    """Return the label that a member holds; None for what is none."""
    value: object = data.decode("utf-8", "replace").strip()
    if ending == "json":
        try:
            described = json.loads(data)
        except (ValueError, RecursionError):
            return None
        found = described if isinstance(described, dict) else {}
        value = next((found[key] for key in _JSON_LABELS if key in found), None)
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() else value or None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _label_names(*folders: Path) -> dict[int, str]:
    files = [folder / name for folder in folders for name in _NAMES_FILES]
    return next((names for file in files if (names := read_label_names(file))), {})


def _samples(path: Path) -> Iterator[_Sample]:
    """Yield the samples of a tar: neighbours with one name up to its first dot. Raises DataError."""
    sample: _Sample | None = None
    with reading(path), open(path, "rb") as file, tarfile.open(path, "r:*") as tar:
        is_plain = not _is_compressed(path)
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
            folder, _, base = member.name.rpartition("/")
            key, _, ending = base.partition(".")
            if not member.isfile() or member.issparse() or not key:
                continue
            key = f"{folder}/{key}" if folder else key
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
            _add(sample, member, ending.lower(), file if is_plain else None, tar)
    if sample is not None:
        yield sample


def _add(
    sample: _Sample, member: tarfile.TarInfo, ending: str, file: BinaryIO | None, tar: tarfile.TarFile
) -> None:
    """Note what a member is: a label, a picture, or something else."""

    def read(size: int) -> bytes:
        if file is None:
            stream = tar.extractfile(member)
            return stream.read(size) if stream else b""
        file.seek(member.offset_data)
        return file.read(min(size, member.size))

    if ending in _LABEL_ENDINGS:
        sample.labels[ending] = read(_MOST_LABEL_BYTES)
    elif names_a_picture(f"x.{ending}") or picture_format(read(SNIFF_BYTES)):
        sample.pictures.append((member.name, member.offset_data, member.size))


def _is_compressed(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == _GZIP_MAGIC
