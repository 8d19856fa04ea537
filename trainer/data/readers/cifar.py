"""CIFAR-10 and CIFAR-100 binary files.

CIFAR-10 consists of `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, with records of 1 label
byte and 3,072 pixel bytes. CIFAR-100 consists of `train.bin` and `test.bin`, with records of 1 coarse and 1
fine label byte and the same pixels. Class names come from a text file in the same folder. Each record becomes
one item, and the file determines its split. Format: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trainer.data.items import Item, Rejection
from trainer.data.readers.read_result import ReadResult, display_name, list_folder
from trainer.errors import DataError
from trainer.sanitize import printable

_PIXEL_BYTES = 3072


@dataclass(frozen=True)
class _Kind:
    """File names, label size and class names file of one of the two datasets."""

    train: re.Pattern[str]
    test: str
    label_bytes: int
    names: str


_KINDS = (
    _Kind(re.compile(r"data_batch_\d+\.bin"), "test_batch.bin", 1, "batches.meta.txt"),
    _Kind(re.compile(r"train\.bin"), "test.bin", 2, "fine_label_names.txt"),
)


def find_cifar_files(folder: Path) -> list[Path]:
    """Return the files in `folder` that have CIFAR file names."""
    return [path for path in list_folder(folder)[1] if _find_kind(path) and path.is_file()]


def read_cifar_files(files: list[Path], root: Path) -> ReadResult:
    """Read the records of `files`; item names consist of file and zero-based record, such as `test.bin#7`.

    The label is the last byte before the pixels. Without a class names file, the label number is the class
    name. Raises DataError for a file that is unreadable, has another name, or does not consist of whole
    records.
    """
    result = ReadResult()
    for path in files:
        kind = _find_kind(path)
        if kind is None:
            raise DataError(
                "A .bin file does not have the name of a CIFAR file.",
                "Rename it to data_batch_1.bin, test_batch.bin, train.bin or test.bin.",
                received=printable(str(path)),
            )
        _read_records(result, path, kind, root)
    return result


def _find_kind(path: Path) -> _Kind | None:
    name = path.name.lower()
    return next((kind for kind in _KINDS if kind.train.fullmatch(name) or name == kind.test), None)


def _read_records(result: ReadResult, path: Path, kind: _Kind, root: Path) -> None:
    names, labels = _read_class_names(path.parent / kind.names), _read_labels(path, kind)
    split = "test" if path.name.lower() == kind.test else "train"
    name, record_bytes = display_name(path, root), kind.label_bytes + _PIXEL_BYTES
    for index, label in enumerate(labels):
        if names and label >= len(names):
            result.rejections.append(
                Rejection(f"{name}#{index}", f"unknown label: {label} is not in {kind.names}")
            )
            continue
        start = index * record_bytes + kind.label_bytes
        text = printable(names[label]) if names else str(label)
        result.items.append(Item(f"{name}#{index}", text, split, path, start, _PIXEL_BYTES, "cifar"))


def _read_class_names(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8", "backslashreplace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(
            "A file with class names cannot be read.",
            "Check its permissions.",
            received=f"{printable(str(path))} ({error.strerror})",
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _read_labels(path: Path, kind: _Kind) -> list[int]:
    record_bytes = kind.label_bytes + _PIXEL_BYTES
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            "A file cannot be read.",
            "Check its permissions.",
            received=f"{printable(str(path))} ({error.strerror})",
        ) from error
    if not data or len(data) % record_bytes:
        raise DataError(
            f"A CIFAR file is truncated or has another format: its size is not a multiple of {record_bytes} "
            "bytes.",
            "Download it again.",
            received=f"{printable(str(path))}, {len(data)} bytes",
        )
    return list(data[kind.label_bytes - 1 :: record_bytes])
