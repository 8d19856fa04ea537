"""Dataset layouts: readers that turn a local folder or file into items.

The layout is named or detected ("auto"). A reader returns an `Item` for each image and a `Rejection` for each
file or row that cannot be used. No image is decoded here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from trainer.data.items import Item, Rejection, normalized
from trainer.data.readers.cifar import find_cifar_files, read_cifar_files
from trainer.data.readers.folders import (
    describe_unused,
    folders_beside_tables,
    read_folders,
    tables_beside_folders,
)
from trainer.data.readers.import_files import SUFFIXES as IMPORT_SUFFIXES
from trainer.data.readers.import_files import Buckets, find_import_files, read_import_files
from trainer.data.readers.parquet import (
    Extraction,
    find_all_parquet_files,
    find_parquet_files,
    read_parquet_files,
)
from trainer.data.readers.read_result import ReadResult, describe_links, wrapped_folders
from trainer.data.readers.tfrecord import (
    find_any_tfrecord_files,
    find_tfrecord_files,
    is_tfrecord,
    read_tfrecord_files,
)
from trainer.data.readers.webdataset import (
    find_tars,
    find_webdataset_files,
    is_webdataset,
    read_webdataset_files,
)
from trainer.errors import DataError
from trainer.sanitize import printable

__all__ = ["SourceContents", "read_layout"]


class SourceContents(NamedTuple):
    """Items, rejections and warnings of one source."""

    items: list[Item]
    """Names are unique; labels are in NFC."""
    rejections: list[Rejection]
    layout: str
    """folders, import, tfrecord, webdataset, parquet or cifar."""
    warnings: list[str]
    """User-facing warnings, one sentence each."""


class _FileLayout(NamedTuple):
    """Layout defined by a few files that list or contain the images."""

    name: str
    find: Callable[[Path], list[Path]]
    read: Callable[[list[Path], Path], ReadResult]
    expected: str
    find_requested: Callable[[Path], list[Path]] | None = None
    """Replaces `find` when the layout is requested by name."""


class _Read(NamedTuple):
    """Result of reading a source."""

    result: ReadResult
    layout: str
    files: list[Path]
    """Files of a folder source that list or contain the images; empty for a single-file source."""


def _build_file_layouts(
    buckets: Buckets, extraction: Extraction | None, is_multi: bool, group_column: str | None
) -> tuple[_FileLayout, ...]:
    find_import = partial(find_import_files, is_multi=is_multi)
    read_import = partial(read_import_files, buckets=buckets, is_multi=is_multi, group_column=group_column)
    tables = _FileLayout("import", find_import, read_import, "a .csv, .tsv or .jsonl table of its images")
    if is_multi:
        return (tables,)
    parquet = []
    if extraction is not None:
        read_parquet = partial(read_parquet_files, extraction=extraction)
        parquet.append(
            _FileLayout(
                "parquet", find_parquet_files, read_parquet, "*.parquet files", find_all_parquet_files
            )
        )
    return (
        _FileLayout(
            "tfrecord", find_tfrecord_files, read_tfrecord_files, "TFRecord files", find_any_tfrecord_files
        ),
        _FileLayout(
            "webdataset",
            find_webdataset_files,
            read_webdataset_files,
            "tar files with a label (.cls, or .json with label) for each image",
            find_tars,
        ),
        *parquet,
        _FileLayout("cifar", find_cifar_files, read_cifar_files, "CIFAR .bin files"),
        tables,
    )


def read_layout(
    root: Path,
    layout: str,
    buckets: Buckets,
    extraction: Extraction | None = None,
    labels: Literal["single", "multi"] = "single",
    group_column: str | None = None,
) -> SourceContents:
    """Read the images of `root` and return their items and rejections, both sorted by name.

    `root` is a folder, or a single file of a file-based layout. `layout` is the name of a layout, or "auto"
    for the first that matches: TFRecord, WebDataset, Parquet, CIFAR, import files, then class folders.
    Folders that could be either splits or classes are rejected unless `layout` is "folders". Parquet requires
    `extraction`. With `labels` "multi" an image has any number of labels, which only tables support.
    `group_column` is the column of a table that contains the groups of the images. `buckets` downloads the
    images that import files list by gs:// URI. An item's split is None if the source does not define one.
    Raises DataError, and the errors that `buckets` raises.
    """
    kinds = _build_file_layouts(buckets, extraction, labels == "multi", group_column)
    if labels == "multi":
        result, name, files = _read_multi(root, layout, kinds[0])
    else:
        read = _read_file if root.is_file() else _read_folder
        result, name, files = read(root, layout, kinds)
    used = dict.fromkeys([*files, *(item.path for item in result.items)])
    links = describe_links(used, root.parent if root.is_file() else root)
    items = sorted(map(_normalize, result.items), key=lambda item: _natural_key(item.name))
    rejections = sorted(result.rejections, key=lambda rejection: rejection.name)
    return SourceContents(items, rejections, name, [*result.warnings, *([links] if links else [])])


def _normalize(item: Item) -> Item:
    label = normalized(item.label)
    return item if label == item.label else replace(item, label=label)


def _read_multi(root: Path, layout: str, tables: _FileLayout) -> _Read:
    """Read the tables of `root`, a table or a folder of tables. Raises DataError if there is none."""
    folders = [] if root.is_file() else wrapped_folders(root)
    is_table = root.is_file() and root.suffix.lower() in IMPORT_SUFFIXES
    files = [root] if is_table else next(filter(None, map(tables.find, folders)), [])
    if layout not in ("auto", "import") or not files:
        unused = "".join(f" {sentence}." for sentence in describe_unused(root, (), True)) if folders else ""
        setting = "" if layout == "auto" else f"data.layout={layout} and "
        raise DataError(
            "data.labels=multi requires a table with the labels of each image; other layouts have one label "
            f"per image.{unused}",
            "Add a .csv, .tsv or .jsonl file with the columns path and labels (separated by ; in a cell), or "
            "with one 0/1 column per label.",
            received=f"{setting}{printable(str(root))}",
        )
    result = tables.read(files, root if folders else root.parent)
    if folders:
        result, _ = tables_beside_folders(result, files, root, is_chosen=True, is_multi=True)
    return _Read(result, tables.name, files)


def _natural_key(name: str) -> tuple[str, int]:
    """Return a sort key that orders the records of a file by number."""
    file, _, record = name.rpartition("#")
    return (file, int(record)) if file and record.isdecimal() else (name, -1)


def _read_folder(root: Path, layout: str, kinds: tuple[_FileLayout, ...]) -> _Read:
    if layout == "folders":
        return _Read(read_folders(root, is_literal=True), layout, [])
    for kind in kinds:
        if layout not in ("auto", kind.name):
            continue
        for folder in wrapped_folders(root):
            find = kind.find_requested if layout == kind.name and kind.find_requested else kind.find
            if files := find(folder):
                result = kind.read(files, root)
                if kind.name == "import":
                    return _Read(*tables_beside_folders(result, files, root, layout == "import"), files)
                return _Read(result, kind.name, files)
        if layout == kind.name:
            unused = (
                "".join(f": {sentence}" for sentence in describe_unused(root)) if layout == "import" else ""
            )
            raise DataError(
                f"data.layout is {layout}, but the source does not contain {kind.expected}{unused}.",
                "Check data.source, or set data.layout=auto.",
                received=printable(str(root)),
            )
    return _Read(folders_beside_tables(root), "folders", [])


def _read_file(path: Path, layout: str, kinds: tuple[_FileLayout, ...]) -> _Read:
    name = layout if layout != "auto" else _detect_layout(path)
    for kind in kinds:
        if kind.name == name:
            return _Read(kind.read([path], path.parent), kind.name, [])
    raise DataError(
        "The source is a single file of an unsupported type.",
        "Use a folder of class folders, an archive, a table of images (.csv, .tsv, .jsonl), or a TFRecord, "
        "Parquet or CIFAR .bin file.",
        received=printable(str(path)),
    )


def _detect_layout(path: Path) -> str | None:
    if path.suffix.lower() in IMPORT_SUFFIXES:
        return "import"
    if path.suffix.lower() == ".bin":
        return "cifar"
    if path.suffix.lower() == ".parquet":
        return "parquet"
    if ".tfrecord" in path.name.lower() or is_tfrecord(path):
        return "tfrecord"
    return "webdataset" if is_webdataset(path) else None
