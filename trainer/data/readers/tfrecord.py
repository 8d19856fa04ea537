"""Reader for TFRecord files of tf.train.Example messages that does not need TensorFlow.

Records have `image/encoded`, `image/class/label` and optionally `image/class/text`, with an optional
labels.txt. Records of TensorFlow Datasets have `image` and `label`, with features.json and label.labels.txt.
These files are in the folder of the records or in the source's root. Each record becomes one item with the
byte range of its encoded image in the file. The checksum of every record is verified here, once.
Format: https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from trainer.data.items import Item, Rejection
from trainer.data.readers.read_result import (
    ReadResult,
    display_name,
    files_of_splits,
    read_json,
    read_label_names,
    split_among_words,
    split_named,
)
from trainer.errors import DataError
from trainer.sanitize import printable

# Field names, numbers and types of each message; a type is BYTES, INT64 or the name of a message. The map
# of features has its wire format, repeated entries; names are bytes, because not every writer uses UTF-8.
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "BytesList": [("value", 1, "BYTES")],
    "Int64List": [("value", 1, "INT64")],
    "Feature": [("bytes_list", 1, "BytesList"), ("int64_list", 3, "Int64List")],
    "Entry": [("key", 1, "BYTES"), ("value", 2, "Feature")],
    "Features": [("feature", 1, "Entry")],
    "Example": [("features", 1, "Features")],
}
_REPEATED = ("BytesList.value", "Int64List.value", "Features.feature")
_PREFIX_BYTES = 64


@dataclass(frozen=True)
class FeatureValue:
    """First value of a feature: bytes or a number."""

    data: bytes | None = None
    number: int | None = None
    has_more: bool = False
    """Whether the feature has more values."""


def read_first_values(record: bytes) -> dict[str, FeatureValue]:
    """Return the first value of each bytes and int64 feature of an Example, by feature name.

    Raises ValueError if the bytes are not an Example.
    """
    from google.protobuf.message import DecodeError

    try:
        example = _example_class().FromString(record)
    except DecodeError as error:
        raise ValueError("invalid protobuf message") from error
    values: dict[str, FeatureValue] = {}
    for entry in example.features.feature:
        data, numbers = entry.value.bytes_list.value, entry.value.int64_list.value
        name = entry.key.decode("utf-8", "replace")
        if data:
            values[name] = FeatureValue(data=data[0], has_more=len(data) > 1)
        elif numbers:
            values[name] = FeatureValue(number=numbers[0], has_more=len(numbers) > 1)
    return values


def find_offset(record: bytes, value: bytes) -> int:
    """Return the offset of `value` in a record that contains it."""
    # A search for the whole value first preprocesses it, which is slow for a large image.
    start = record.find(value[:_PREFIX_BYTES])
    return start if record.startswith(value, start) else record.find(value, start)


@cache
def _example_class() -> Any:
    """Return the class of Example messages, in a descriptor pool separate from that of TensorFlow."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    file = FileDescriptorProto(name="example.proto", package="trainer", syntax="proto3")
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, number, kind in fields:
            is_repeated = f"{message}.{name}" in _REPEATED
            label = (
                FieldDescriptorProto.LABEL_REPEATED if is_repeated else FieldDescriptorProto.LABEL_OPTIONAL
            )
            field = declared.field.add(name=name, number=number, label=label)
            if kind in _MESSAGES:
                field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".trainer.{kind}"
            else:
                field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind}")
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("trainer.Example"))


_NAME = re.compile(r".*\.tfrecords?(-\d+-of-\d+)?(\.gz)?", re.IGNORECASE)
# Other names of TFRecord files: train-00000-of-00002, train.record. The first record must also be valid.
_LIKELY_NAME = re.compile(r"(.*\.(tf)?records?|.*-\d+-of-\d+)", re.IGNORECASE)
_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_GZIP_MAGIC = b"\x1f\x8b"
_TFDS_IMAGE, _TFDS_LABEL = ".image_feature.Image", ".class_label_feature.ClassLabel"


@dataclass(frozen=True)
class _Schema:
    """Feature names of the records, and class names."""

    image: str = "image/encoded"
    text: str | None = "image/class/text"
    number: str = "image/class/label"
    names: Mapping[int, str] = field(default_factory=dict)
    names_file: str = "labels.txt"


@dataclass(frozen=True)
class _Record:
    """One record: its index, the offset of its data, and the data, or None if the checksum does not match."""

    index: int
    start: int
    data: bytes | None


def find_tfrecord_files(folder: Path) -> list[Path]:
    """Return the TFRecord files in `folder` and in its split folders.

    Files are recognized by name; ambiguous names also require a valid first record.
    """
    return [path for path in files_of_splits(folder) if _has_tfrecord_name(path) and path.is_file()]


def find_any_tfrecord_files(folder: Path) -> list[Path]:
    """Return the files of `find_tfrecord_files` and all others in these folders with a valid first record."""
    files = [path for path in files_of_splits(folder) if path.is_file()]
    return [path for path in files if _NAME.fullmatch(path.name) or is_tfrecord(path)]


def _has_tfrecord_name(path: Path) -> bool:
    if _NAME.fullmatch(path.name):
        return True
    return _LIKELY_NAME.fullmatch(path.name) is not None and is_tfrecord(path)


def is_tfrecord(path: Path) -> bool:
    """Return whether the file begins with a complete record with valid checksums."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(_HEADER_BYTES)
            length = _to_number(header[:8])
            is_header = len(header) == _HEADER_BYTES and masked_crc(header[:8]) == _to_number(header[8:])
            if not is_header or _HEADER_BYTES + length + _FOOTER_BYTES > size:
                return False
            return masked_crc(file.read(length)) == _to_number(file.read(_FOOTER_BYTES))
    except OSError:
        return False


def _to_number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def read_tfrecord_files(files: list[Path], root: Path) -> ReadResult:
    """Read all records of `files`; item names consist of file and zero-based record, such as `a.tfrecord#7`.

    The split is that of a word in the file's name, or of its folder's name, or None. The label is the
    record's text; without one, the number's name in labels.txt or in the files of TensorFlow Datasets;
    without that, the number. Raises DataError for a file that is unreadable, compressed, truncated or
    invalid.
    """
    result = ReadResult()
    for path in files:
        schema = _read_schema(path.parent, root if root.is_dir() else root.parent)
        split = split_among_words(path.name) or split_named(path.parent.name)
        for record in _read_records(path):
            name = f"{display_name(path, root)}#{record.index}"
            item = _build_item(record, Item(name, "", split, path), schema)
            if isinstance(item, str):
                result.rejections.append(Rejection(name, item))
            else:
                result.items.append(item)
    return result


def _build_item(record: _Record, blank: Item, schema: _Schema) -> Item | str:
    """Return the item with its label and byte range, or the reason why the record cannot be used."""
    if record.data is None:
        return "damaged: checksum mismatch"
    try:
        values = read_first_values(record.data)
    except ValueError:
        return "damaged: the record is not a tf.train.Example"
    if schema.image not in values and _TFDS.image in values:
        # Records of TensorFlow Datasets without their metadata files.
        schema = replace(_TFDS, names=schema.names, names_file=schema.names_file)
    features = (schema.image, schema.text or schema.number, schema.number)
    image, text, number = map(values.get, features)
    if image is None or image.data is None:
        return f"the record has no {schema.image}"
    if several := [name for name in features if name in values and values[name].has_more]:
        return f"several values of {several[0]}; an image has one class"
    if text is not None and text.data:
        label = text.data.decode("utf-8", "backslashreplace")
    elif number is None or number.number is None:
        return f"the record has no {schema.number}"
    elif schema.names and number.number not in schema.names:
        return f"unknown label: {number.number} is not in {schema.names_file}"
    else:
        label = schema.names.get(number.number, str(number.number))
    start = record.start + find_offset(record.data, image.data)
    return Item(blank.name, printable(label), blank.split, blank.path, start, len(image.data))


def _read_records(path: Path) -> Iterator[_Record]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(2) == _GZIP_MAGIC:
                raise DataError(
                    "A TFRecord file is compressed with GZIP, so single images cannot be read from it.",
                    "Decompress it with gunzip.",
                    received=printable(str(path)),
                )
            file.seek(0)
            index = 0
            while file.tell() < size:
                yield _read_record(file, path, index, size)
                index += 1
    except OSError as error:
        raise DataError(
            "A file cannot be read.",
            "Check its permissions.",
            received=f"{printable(str(path))} ({error.strerror})",
        ) from error


def _read_record(file: BinaryIO, path: Path, index: int, size: int) -> _Record:
    """Read one record: length (8 bytes), its CRC (4 bytes), data, their CRC (4 bytes). Raises DataError."""
    start = file.tell() + _HEADER_BYTES
    header = file.read(_HEADER_BYTES)
    length = _to_number(header[:8])
    is_complete = len(header) == _HEADER_BYTES
    is_valid = is_complete and masked_crc(header[:8]) == _to_number(header[8:])
    # Without a valid length, the start of the next record is unknown.
    if not is_valid or start + length + _FOOTER_BYTES > size:
        state = "truncated" if is_valid or not is_complete else "damaged or not a TFRecord file"
        raise DataError(
            f"A TFRecord file is {state}.",
            "Download it again.",
            received=f"{printable(str(path))}, record {index}, byte {start - _HEADER_BYTES} of {size}",
        )
    data, footer = file.read(length), file.read(_FOOTER_BYTES)
    return _Record(index, start, data if masked_crc(data) == _to_number(footer) else None)


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C, rotated and offset so that CRCs of CRCs are not weak (TensorFlow's crc32c.h)."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


_TFDS = _Schema("image", None, "label")


def _read_schema(folder: Path, root: Path) -> _Schema:
    """Return the schema from the metadata files in `folder`, or else in `root`."""
    for metadata_folder in (folder, root):
        schema = _read_tfds_schema(metadata_folder)
        if schema is not None:
            return schema
        if names := read_label_names(metadata_folder / "labels.txt"):
            return _Schema(names=names)
    return _Schema()


def _read_tfds_schema(folder: Path) -> _Schema | None:
    """Return the schema of TensorFlow Datasets files in `folder`, or None if there are none.

    A single image feature or a single class label feature in features.json is used under its own name.
    """
    try:
        features = read_json(folder / "features.json")["featuresDict"]["features"]
        kinds = {name: feature["pythonClassName"] for name, feature in features.items()}
    except (KeyError, TypeError, AttributeError):
        kinds = {}
    images = [name for name, kind in kinds.items() if str(kind).endswith(_TFDS_IMAGE)]
    labels = [name for name, kind in kinds.items() if str(kind).endswith(_TFDS_LABEL)]
    label = labels[0] if len(labels) == 1 else _TFDS.number
    names = read_label_names(folder / f"{label}.labels.txt")
    if not (images or labels or names):
        return None
    image = images[0] if len(images) == 1 else _TFDS.image
    return _Schema(image, None, label, names, f"{label}.labels.txt")
