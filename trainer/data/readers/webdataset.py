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
from trainer.data.readers.labels import files_of_splits, read_label_names
from trainer.data.readers.read_result import ReadResult, name_of, split_among_words, split_named
from trainer.errors import DataError
from trainer.sanitize import printable

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_GZIP_MAGIC = b"\x1f\x8b"
_LABEL_ENDINGS = ("cls", "json")
"""In order of precedence."""
_JSON_LABELS = ("label", "cls", "class", "class_name", "label_name")
_NAMES_FILES = ("labels.txt", "classes.txt", "classnames.txt")
_MOST_LABEL_BYTES = 1 << 20
_LOOKED_AT = 50
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
            if ending in self.labels and (label := _label(ending, self.labels[ending])) is not None:
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
        samples = list(islice(_samples(path), _LOOKED_AT))
    except DataError:
        return False  # unpacking reports the error
    labelled = [sample.label() is not None for sample in samples if sample.pictures]
    is_one = bool(labelled) and all(labelled)
    if is_one:
        _require_plain(path)
    return is_one


def _require_plain(path: Path) -> None:
    if _is_compressed(path):
        raise DataError(
            "A WebDataset is compressed, so that its images can't be read one by one; decompress it with "
            "gunzip.",
            received=f"{printable(str(path))}",
        )


def read_webdataset_files(files: list[Path], root: Path) -> ReadResult:
    """Read the labels of `files`; item names consist of tar and member, such as `train-000.tar#000001.jpg`.

    The split is that of a word in the tar's name, or of its folder's name, or None. Raises DataError for a
    tar that is unreadable, damaged or compressed.
    """
    found = ReadResult()
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
    """Return the item with its label and byte range, or the reason why the sample cannot be used."""
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
    """Return the label in a member, or None if it has no valid label."""
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
    """Yield the samples of a tar: adjacent members with the same name up to the first dot.

    Raises DataError.
    """
    sample: _Sample | None = None
    with reading(path), open(path, "rb") as file, tarfile.open(path, "r:*") as tar:
        is_plain = not _is_compressed(path)
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
            _add(sample, member, ending.lower(), file if is_plain else None, tar)
    if sample is not None:
        yield sample


def _add(
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
        sample.labels[ending] = read(_MOST_LABEL_BYTES)
    elif names_a_picture(f"x.{ending}") or picture_format(read(SNIFF_BYTES)):
        sample.pictures.append((member.name, member.offset_data, member.size))


def _is_compressed(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == _GZIP_MAGIC
