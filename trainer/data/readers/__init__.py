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

from trainer.data.items import Item, Rejection
from trainer.data.labels import normalized
from trainer.data.readers.choice import folders_beside_tables, tables_beside_folders, unused_below
from trainer.data.readers.cifar import find_cifar_files, read_cifar_files
from trainer.data.readers.folders import read_folders
from trainer.data.readers.import_files import SUFFIXES as IMPORT_SUFFIXES
from trainer.data.readers.import_files import Buckets, find_import_files, read_import_files
from trainer.data.readers.links import links_sentence
from trainer.data.readers.parquet import (
    Extraction,
    find_all_parquet_files,
    find_parquet_files,
    read_parquet_files,
)
from trainer.data.readers.read_result import ReadResult, wrapped_folders
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
    wants: str
    find_asked: Callable[[Path], list[Path]] | None = None
    """Replaces `find` when the layout is requested by name."""


class _Read(NamedTuple):
    found: ReadResult
    layout: str
    files: list[Path]
    """Files of a folder source that list or contain the images; empty for a single-file source."""


def _file_layouts(buckets: Buckets, extraction: Extraction | None, is_multi: bool) -> tuple[_FileLayout, ...]:
    find_import = partial(find_import_files, is_multi=is_multi)
    read_import = partial(read_import_files, buckets=buckets, is_multi=is_multi)
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
            "tars of images that have a label of their name beside them (.cls, or .json with label)",
            find_tars,
        ),
        *parquet,
        _FileLayout("cifar", find_cifar_files, read_cifar_files, "CIFAR's .bin files"),
        tables,
    )


def read_layout(
    root: Path,
    layout: str,
    buckets: Buckets,
    extraction: Extraction | None = None,
    labels: Literal["single", "multi"] = "single",
) -> SourceContents:
    """Read the images of `root` and return their items and rejections, both sorted by name.

    `root` is a folder, or a single file of a file-based layout. `layout` is the name of a layout, or "auto"
    for the first that matches: TFRecord, WebDataset, Parquet, CIFAR, import files, then class folders.
    Folders that could be either splits or classes are rejected unless `layout` is "folders". Parquet requires
    `extraction`. With `labels` "multi" an image has any number of labels, which only tables support.
    `buckets` downloads the images that import files list by gs:// URI. An item's split is None if the source
    does not define one. Raises DataError, and the errors that `buckets` raises.
    """
    kinds = _file_layouts(buckets, extraction, labels == "multi")
    if labels == "multi":
        found, name, files = _read_multi(root, layout, kinds[0])
    else:
        read = _read_file if root.is_file() else _read_folder
        found, name, files = read(root, layout, kinds)
    used = dict.fromkeys([*files, *(item.path for item in found.items)])
    links = links_sentence(used, root.parent if root.is_file() else root)
    items = sorted(map(_normalized, found.items), key=lambda item: _natural(item.name))
    rejections = sorted(found.rejections, key=lambda rejection: rejection.name)
    return SourceContents(items, rejections, name, [*found.warnings, *([links] if links else [])])


def _normalized(item: Item) -> Item:
    label = normalized(item.label)
    return item if label == item.label else replace(item, label=label)


def _read_multi(root: Path, layout: str, tables: _FileLayout) -> _Read:
    """Read the tables of `root`, a table or a folder of tables. Raises DataError if there is none."""
    folders = [] if root.is_file() else wrapped_folders(root)
    is_table = root.is_file() and root.suffix.lower() in IMPORT_SUFFIXES
    files = [root] if is_table else next(filter(None, map(tables.find, folders)), [])
    if layout not in ("auto", "import") or not files:
        why = "".join(f" {sentence}." for sentence in unused_below(root, (), True)) if folders else ""
        named = "" if layout == "auto" else f"data.layout={layout} and "
        raise DataError(
            "With data.labels=multi a table says which labels each image has: a .csv, .tsv or .jsonl file "
            "with the columns path and labels (several in a cell separated by ;), or with one 0/1 column a "
            f"label.{why} Other layouts hold one label an image.",
            received=f"{named}{printable(str(root))}",
        )
    found = tables.read(files, root if folders else root.parent)
    if folders:
        found, _ = tables_beside_folders(found, files, root, is_chosen=True, is_multi=True)
    return _Read(found, tables.name, files)


def _natural(name: str) -> tuple[str, int]:
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
            find = kind.find_asked if layout == kind.name and kind.find_asked else kind.find
            if files := find(folder):
                found = kind.read(files, root)
                if kind.name == "import":
                    return _Read(*tables_beside_folders(found, files, root, layout == "import"), files)
                return _Read(found, kind.name, files)
        if layout == kind.name:
            why = "".join(f": {sentence}" for sentence in unused_below(root)) if layout == "import" else ""
            raise DataError(
                f"data.layout is {layout}, but the source has not {kind.wants}{why}.",
                received=f"{printable(str(root))}",
            )
    return _Read(folders_beside_tables(root), "folders", [])


def _read_file(path: Path, layout: str, kinds: tuple[_FileLayout, ...]) -> _Read:
    name = layout if layout != "auto" else _layout_of_file(path)
    for kind in kinds:
        if kind.name == name:
            return _Read(kind.read([path], path.parent), kind.name, [])
    raise DataError(
        "The source is a single file, but neither an archive nor a table of images (.csv, .tsv, .jsonl), a "
        "TFRecord, Parquet or CIFAR .bin file; give the folder of class folders.",
        received=f"{printable(str(path))}",
    )


def _layout_of_file(path: Path) -> str | None:
    if path.suffix.lower() in IMPORT_SUFFIXES:
        return "import"
    if path.suffix.lower() == ".bin":
        return "cifar"
    if path.suffix.lower() == ".parquet":
        return "parquet"
    if ".tfrecord" in path.name.lower() or is_tfrecord(path):
        return "tfrecord"
    return "webdataset" if is_webdataset(path) else None
