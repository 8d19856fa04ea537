"""Parquet files with encoded images, as Hugging Face datasets writes them.

A file has a column of images (binary, or a struct with `bytes`) and a column of labels (strings, or numbers,
whose names may be in the file's metadata). Each row becomes an item. The pages of a Parquet file are
compressed, so that single images cannot be read in place: the images are copied to the cache once, a few rows
at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.items import Item, Rejection
from trainer.data.progress import Progress
from trainer.data.readers.read_result import (
    ReadResult,
    display_name,
    files_of_splits,
    split_among_words,
    split_named,
)
from trainer.errors import DataError, UsageError
from trainer.sanitize import printable
from trainer.storage import build_once, translate_errors, write_all

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGES, _INDEX, _LABELS = "images.bin", "index.npy", "labels.json"
_IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "class", "fine_label", "target", "category", "cls")
_BATCH_ROWS = 32
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Extraction:
    """Cache location and size limit for images extracted from Parquet files."""

    cache_dir: Path
    max_bytes: int
    """Maximum total size of the images of one file."""
    progress: Progress


@dataclass(frozen=True)
class _ParquetColumns:
    image: str
    label: str
    names: tuple[str, ...]
    """Class names of numeric labels; empty if there are none."""


def find_parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files in `folder` and in its split folders that may contain images.

    Files known to have no image column are left out, such as a table of labels beside image files.
    """
    return [path for path in find_all_parquet_files(folder) if _may_contain_images(path)]


def find_all_parquet_files(folder: Path) -> list[Path]:
    """Return all Parquet files in `folder` and in its split folders."""
    files = files_of_splits(folder)
    return [path for path in files if path.name.lower().endswith(".parquet") and path.is_file()]


def _may_contain_images(path: Path) -> bool:
    """Return whether a column may contain images; True for an unreadable file, which fails later."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return True
    try:
        return any(_is_bytes(field.type) for field in parquet.read_schema(path))
    except (pa.ArrowException, OSError):
        return True


def read_parquet_files(files: list[Path], root: Path, extraction: Extraction) -> ReadResult:
    """Read all rows of `files`; item names consist of file and zero-based row, such as `train.parquet#7`.

    The split is that of a word in the file's name, or of its folder's name, or None. Raises DataError for a
    file that is unreadable or lacks these columns or exceeds the size limit, UsageError if pyarrow is missing
    or the cache is not writable, TemporaryError if the disk is full.
    """
    result = ReadResult()
    for path in files:
        split = split_among_words(path.name) or split_named(path.parent.name)
        folder = _find_extracted(path, extraction)
        index = np.load(folder / _INDEX)
        labels = json.loads((folder / _LABELS).read_text("utf-8"))
        for row, (start, length, label) in enumerate(index.tolist()):
            name = f"{display_name(path, root)}#{row}"
            if length < 0 or label < 0:
                missing = "label" if length >= 0 else "encoded image"
                result.rejections.append(Rejection(name, f"the row has no {missing}"))
            else:
                text = printable(labels[label])
                result.items.append(Item(name, text, split, folder / _IMAGES, start, length))
    return result


def _find_extracted(path: Path, extraction: Extraction) -> Path:
    """Return the cache folder with the images of the file, extracted once per version of the file."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(
            f"A Parquet file cannot be read: {error.strerror}.",
            "Check its path and its permissions.",
            received=printable(str(path)),
        ) from None
    identity = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()

    def build(folder: Path) -> None:
        _extract(path, folder, extraction)

    return build_once(
        extraction.cache_dir / "parquet" / digest,
        build,
        lambda: extraction.progress.on_message(
            f"Waiting for another process that is reading {printable(path.name)}"
        ),
    )


def _extract(path: Path, folder: Path, extraction: Extraction) -> None:
    """Write the concatenated images of the file, their index and the labels."""
    ranges: list[tuple[int, int, int]] = []
    numbers: dict[str, int] = {}
    end = 0
    with translate_errors(folder / _IMAGES), open(folder / _IMAGES, "wb", buffering=0) as file:
        for image, label in _read_rows(path, extraction.progress):
            number = -1 if label is None else numbers.setdefault(label, len(numbers))
            ranges.append((end, -1 if image is None else len(image), number))
            if image is not None:
                write_all(file, image)
                end += len(image)
            if end > extraction.max_bytes:
                raise DataError(
                    "The images of a Parquet file exceed data.max_extracted_mib.",
                    "Raise the limit, or use fewer images.",
                    received=f"{printable(str(path))}, over {end >> 20:,} MiB",
                )
        np.save(folder / _INDEX, np.asarray(ranges, np.int64).reshape(-1, 3))
        (folder / _LABELS).write_text(json.dumps(list(numbers)), "utf-8")


def _read_rows(path: Path, progress: Progress) -> Iterator[tuple[bytes | None, str | None]]:
    """Yield the image and the label of each row, None if missing. Raises DataError, UsageError."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            "Parquet files require pyarrow, which is not installed.",
            "Install it with pip install 'trainer[parquet]'.",
            received=printable(str(path)),
        ) from None
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            columns = _find_columns(file.schema_arrow, path)
            task = progress.start(f"Reading {printable(path.name)}", file.metadata.num_rows, "images")
            try:
                batches = file.iter_batches(_BATCH_ROWS, columns=[columns.image, columns.label])
                for batch in batches:
                    yield from _read_batch(batch, columns)
                    task.advance(batch.num_rows)
            finally:
                task.finish()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            "A Parquet file cannot be read: it is damaged or incomplete.",
            "Download it again.",
            received=f"{printable(str(path))} ({printable(str(error))[:200]})",
        ) from error


def _read_batch(batch: pa.RecordBatch, columns: _ParquetColumns) -> Iterator[tuple[bytes | None, str | None]]:
    images, labels = batch.column(columns.image).to_pylist(), batch.column(columns.label).to_pylist()
    for image, label in zip(images, labels, strict=True):
        data = image.get("bytes") if isinstance(image, dict) else image
        if isinstance(label, int) and columns.names:
            label = columns.names[label] if 0 <= label < len(columns.names) else None
        yield data, None if label is None else str(label)


def _find_columns(schema: pa.Schema, path: Path) -> _ParquetColumns:
    """Return the image and label columns. Raises DataError if they are missing or ambiguous."""
    features = _read_features(schema)
    images = [field.name for field in schema if _is_bytes(field.type)]
    labels = [field.name for field in schema if _is_label(field.type) and field.name not in images]
    classes = [name for name in labels if features.get(name, {}).get("_type") == "ClassLabel"]
    image = _choose(images, _IMAGE_NAMES)
    label = _choose(classes, _LABEL_NAMES) or next((name for name in _LABEL_NAMES if name in labels), None)
    if image is None or label is None:
        raise DataError(
            "A Parquet file has no column of encoded images or no column of labels.",
            "Name the columns image and label.",
            received=f"{printable(str(path))}, columns {printable(', '.join(schema.names))[:200]}",
        )
    names = features.get(label, {}).get("names")
    return _ParquetColumns(image, label, tuple(map(str, names)) if isinstance(names, list) else ())


def _choose(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """Return the first of the usual names that is in `names`, or the only name."""
    return next((name for name in usual if name in names), names[0] if len(names) == 1 else None)


def _read_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the features of each column from the metadata of Hugging Face datasets."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _is_bytes(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_label(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_label(kind.value_type)
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))
