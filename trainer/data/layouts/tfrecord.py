"""TFRecord files of tf.train.Example, without TensorFlow.

In: files of records with `image/encoded`, `image/class/label` and perhaps `image/class/text`, with
an optional labels.txt beside them. Out: one item for each record, which says where in the file
its encoded image lies. Every record's checksum is compared, once, here.
Format: https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from trainer.data.items import Item, Rejection
from trainer.data.layouts.found import Found, list_folder, name_of, split_among_words, split_named
from trainer.data.layouts.protobuf import first_values
from trainer.exits import DataError
from trainer.printable import printable

_NAME = re.compile(r".*\.tfrecords?(-\d+-of-\d+)?(\.gz)?", re.IGNORECASE)
_NUMBERED_LABEL = re.compile(r"(\d+)\s*:\s*(.+)")
_FEATURES = ("image/encoded", "image/class/text", "image/class/label")
_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class _Record:
    """One record: its place in the file and its bytes, None if they don't match their checksum."""

    index: int
    start: int
    data: bytes | None


def find_tfrecord_files(folder: Path) -> list[Path]:
    """Return the TFRecord files in `folder` and in its folders that are named like splits."""
    folders, files = list_folder(folder)
    for below in folders:
        files += list_folder(below)[1] if split_named(below.name) else []
    return [path for path in files if _NAME.fullmatch(path.name) and path.is_file()]


def read_tfrecord_files(files: list[Path], root: Path) -> Found:
    """Read all records of `files`; items are named by file and record, from 0, such as `a.tfrecord#7`.

    The split is what a word of the file's name says, or its folder's name, or None. The label is the
    record's text; without one, the number's name in labels.txt; without that, the number.
    Raises DataError for a file that is unreadable, compressed, truncated, or framed wrongly.
    """
    found = Found()
    for path in files:
        names = _label_names(path.parent) or _label_names(root if root.is_dir() else root.parent)
        split = split_among_words(path.name) or split_named(path.parent.name)
        for record in _records(path):
            name = f"{name_of(path, root)}#{record.index}"
            item = _item(record, Item(name, "", split, path), names)
            if isinstance(item, str):
                found.rejections.append(Rejection(name, item))
            else:
                found.items.append(item)
    return found


def _item(record: _Record, blank: Item, names: dict[int, str]) -> Item | str:
    """Return the item with its label and place, or the reason why the record can't be used."""
    if record.data is None:
        return "damaged: the record does not match its checksum"
    try:
        values = first_values(record.data)
    except ValueError as error:
        return f"damaged: the record is not a tf.train.Example ({error})"
    image, text, number = map(values.get, _FEATURES)
    if image is None or image.number is not None:
        return "the record has no image/encoded"
    if several := [name for name in _FEATURES if name in values and values[name].several]:
        return f"several values of {several[0]}; one image has one class"
    if text is not None and text.end > text.start:
        label = record.data[text.start : text.end].decode("utf-8", "backslashreplace")
    elif number is None or number.number is None:
        return "the record has no image/class/label"
    elif names and number.number not in names:
        return f"unknown label: {number.number} is not in labels.txt"
    else:
        label = names.get(number.number, str(number.number))
    start = record.start + image.start
    return Item(blank.name, printable(label), blank.split, blank.path, start, image.end - image.start)


def _records(path: Path) -> Iterator[_Record]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(2) == _GZIP_MAGIC:
                raise DataError(
                    "A TFRecord file is compressed with GZIP, so that its images can't be read one by one; "
                    f"decompress it. Received: {printable(str(path))}"
                )
            file.seek(0)
            index = 0
            while file.tell() < size:
                yield _next_record(file, path, index, size)
                index += 1
    except OSError as error:
        raise DataError(
            f"A file can't be read. Received: {printable(str(path))} ({error.strerror})"
        ) from error


def _next_record(file: BinaryIO, path: Path, index: int, size: int) -> _Record:
    """Read length (8 bytes), its checksum (4), data, their checksum (4)."""
    start = file.tell() + _HEADER_BYTES
    header = file.read(_HEADER_BYTES)
    length = int.from_bytes(header[:8], "little")
    complete = len(header) == _HEADER_BYTES
    sound = complete and masked_crc(header[:8]) == struct.unpack_from("<I", header, 8)[0]
    # Without a sound length there is no way to the next record.
    if not sound or start + length + _FOOTER_BYTES > size:
        what = "truncated" if sound or not complete else "damaged or not a TFRecord file"
        raise DataError(
            f"A TFRecord file is {what}; get it again. "
            f"Received: {printable(str(path))}, record {index}, byte {start - _HEADER_BYTES} of {size}"
        )
    data, footer = file.read(length), file.read(_FOOTER_BYTES)
    return _Record(index, start, data if masked_crc(data) == int.from_bytes(footer, "little") else None)


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and moved so that a checksum of checksums isn't weak (TensorFlow's crc32c.h)."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _label_names(folder: Path) -> dict[int, str]:
    """Read labels.txt: lines `7:cat`, or plain names, the first being label 0."""
    try:
        text = (folder / "labels.txt").read_text("utf-8", "backslashreplace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"labels.txt can't be read. Received: {folder} ({error.strerror})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [_NUMBERED_LABEL.fullmatch(line) for line in lines]
    if lines and all(numbered):
        return {int(match[1]): match[2] for match in numbered if match}
    return dict(enumerate(lines))
