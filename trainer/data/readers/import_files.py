"""Tables that list images: Vertex AI import files and tables of other tools.

Vertex AI's files are CSV with rows of `[ML_USE,]URI,label`, and JSONL with `imageGcsUri`,
`classificationAnnotation.displayName` and the resource label `aiplatform.googleapis.com/ml_use`. Other tables
are CSV, TSV and JSONL with named columns in any order, as used by Kaggle and Hugging Face. URIs are paths
relative to the table, on disk or in its bucket, absolute paths, file:// URLs or gs:// URIs. With named
columns they can also be file names without folder or extension. Each usable row becomes an item. Each other
row becomes a rejection that names the line and counts as damaged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.data.items import Item, Rejection
from trainer.data.readers.columns import Columns, choose_columns, is_use
from trainer.data.readers.lookup import Lookup, is_file, located
from trainer.data.readers.named_rows import row_of_one, row_of_several, with_one_label_each
from trainer.data.readers.read_result import ReadResult, list_folder, name_of, split_among_words, split_named
from trainer.data.readers.several_labels import (
    about_empty_columns,
    about_unlabelled,
    mark_columns,
    merged,
    with_labels,
    with_labels_of_cells,
)
from trainer.data.readers.table_splits import splits_of, with_splits_of_folders, without_strangers
from trainer.data.readers.tables import (
    Table,
    encoding_of,
    is_remote,
    read_csv,
    table_of_objects,
    unreadable,
)
from trainer.data.readers.vertex_rows import ANNOTATIONS, Row, read_row
from trainer.errors import DataError
from trainer.sanitize import printable, shown_address, without_secrets
from trainer.storage.store import is_bucket

SUFFIXES = (".csv", ".tsv", ".jsonl")
_SAMPLE_ROWS = 200
_LOOK_ROWS = 5


@dataclass(frozen=True)
class Buckets:
    """Download of images from buckets."""

    fetch: Callable[[Sequence[str]], Mapping[str, Path]]
    """Maps gs:// URIs of objects to local copies; missing objects are left out."""
    beside: str = ""
    """gs:// folder of an import file that was downloaded alone, to which relative paths of its rows refer."""


def find_import_files(folder: Path, is_multi: bool = False) -> list[Path]:
    """Return the tables that list images, in `folder`, its split folders and its folders of tables.

    A folder of tables contains tables and nothing else.
    """
    lookup = Lookup(folder)
    return [path for path in _tables_in(folder) if _problem(path, lookup, is_multi) is None]


def unused_tables(folder: Path, used: Sequence[Path] = (), is_multi: bool = False) -> list[str]:
    """Return a sentence with the reason for each unusable table in `folder` that is not in `used`."""
    lookup = Lookup(folder)
    problems = {path: _problem(path, lookup, is_multi) for path in _tables_in(folder) if path not in used}
    return [
        f"{name_of(path, folder)} is not used: {problem}" for path, problem in problems.items() if problem
    ]


def has_columns(path: Path) -> bool:
    """Return whether the columns of a table have names, unlike those of Vertex AI's import files."""
    return bool(_read(path).header)


def _tables_in(folder: Path) -> list[Path]:
    folders, files = list_folder(folder)
    for below in folders:
        inner, beside = list_folder(below)
        is_of_tables = not inner and all(path.suffix.lower() in SUFFIXES for path in beside)
        files += beside if is_of_tables or split_named(below.name) else []
    return [path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()]


def _problem(path: Path, lookup: Lookup, is_multi: bool) -> str | None:
    """Return why a table cannot be used, or None if it can."""
    try:
        table = _read(path)
    except DataError:
        return "it can't be read as UTF-8 text"
    if not table.header:
        rows = [read_row(table.path, cells, is_multi) for _, cells in table.rows[:_LOOK_ROWS]]
        uris = [row.uri for row in rows if isinstance(row, Row)]
        return None if any(is_remote(uri) or is_file(uri, path) for uri in uris) else "it lists no image"
    if "submission" in path.stem.lower():
        return "it is a form for answers, and its labels mean nothing"
    if path.stem.lower().endswith(("prediction", "predictions")):
        return "it is named like answers of a model, which are no labels"
    columns = _columns(table, lookup, is_multi)
    if isinstance(columns, str):
        return columns
    if not columns.is_resolved:
        example = next((cells[columns.path] for cells in table.sample(1)), "")
        return (
            f"its column {table.header[columns.path]} names no image that is here (first "
            f"{printable(example)}); write paths as seen from the table, or names of files"
        )
    return None


def read_import_files(files: list[Path], root: Path, buckets: Buckets, is_multi: bool = False) -> ReadResult:
    """Read tables; item names are paths relative to `root`, or URIs for images of a bucket.

    With `is_multi` an image has any number of labels, in one row or several, instead of one class. All images
    of buckets are downloaded in one call. Raises DataError for a file that is not text, for unrecognized
    columns, for contradictory tables, for a row with the URL of a server, and the errors that `buckets.fetch`
    raises.
    """
    lookup = Lookup(root)
    found, gathered = ReadResult(), _Gathered()
    tables = without_strangers([_read(file) for file in files], found)
    splits = splits_of(tables)
    rows = [
        (
            table,
            f"{name_of(table.path, root)}:{line}",
            row if isinstance(row, str) else _placed(row, buckets.beside),
        )
        for table in tables
        for line, row in _rows(table, lookup, splits.get(table.path, ""), buckets.beside, is_multi)
    ]
    found.warnings += [warning for table in tables for warning in _unused_splits(table, lookup, is_multi)]
    uris = [row.uri for _, _, row in rows if not isinstance(row, str) and _is_object(row.uri)]
    fetched = buckets.fetch(uris) if uris else {}
    for table, where, row in rows:
        item = row if isinstance(row, str) else _item(row, table.path, where, root, fetched)
        if isinstance(item, str):
            found.rejections.append(Rejection(where, printable(without_secrets(item))))
        elif (kept := item if is_multi else gathered.kept(item, table, where)) is not None:
            found.items.append(kept)
    if is_multi:
        found.items = merged(found.items)
        found.warnings += [*about_unlabelled(found.items), *about_empty_columns(_marks(tables, lookup))]
    return with_splits_of_folders(found, tables, lookup)


class _Gathered:
    """Images that are already listed, by name."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[Item, Table]] = {}

    def kept(self, item: Item, table: Table, where: str) -> Item | None:
        """Return `item` under a unique name, or None if it is already listed. Raises DataError."""
        earlier, other = self._first.setdefault(item.name, (item, table))
        if earlier is item:
            return item
        if table.header and other.header and (earlier.label, earlier.split) == (item.label, item.split):
            return None
        if table.header and other.header and table is not other:
            raise DataError(
                "Two tables say different things of one image; give one of them as data.",
                received=f"{printable(other.path.name)} ({earlier.label}) and {where} ({item.label}) "
                f"for {item.name}",
            )
        # A repeated file keeps its own row, so that conflicting labels are detected.
        return replace(item, name=f"{item.name}#{where}")


def _placed(row: Row, beside: str) -> Row:
    is_relative = row.uri and not is_remote(row.uri) and not row.uri.lower().startswith(("/", "file://"))
    return replace(row, uri=f"{beside}/{row.uri}") if beside and is_relative else row


def _read(path: Path) -> Table:
    if path.suffix.lower() != ".jsonl":
        return read_csv(path, lambda cell: bool(cell) and is_file(cell, path))
    try:
        with open(path, encoding=encoding_of(path), newline="") as file:
            lines = [(number, text) for number, text in enumerate(file, start=1) if text.strip()]
    except (UnicodeError, OSError) as error:
        raise unreadable(path, error) from error
    objects = [(number, value) for number, text in lines if isinstance(value := _parsed(text), dict)]
    is_plain = len(objects) == len(lines) and not any(set(each) & ANNOTATIONS for _, each in objects)
    if is_plain:
        return table_of_objects(path, objects)
    return Table(path, (), [(number, [text]) for number, text in lines])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _rows(
    table: Table, lookup: Lookup, split: str, beside: str, is_multi: bool
) -> Iterator[tuple[int, Row | str]]:
    """Yield each line with its row, or with the reason why it cannot be used."""
    # A displayName in Vertex AI's JSON and the name of a column are single labels and are not separated.
    is_cell = bool(table.header) or table.path.suffix.lower() != ".jsonl"
    if not table.header:
        rows = [(line, read_row(table.path, each, is_multi)) for line, each in table.rows]
    else:
        columns = _columns(table, lookup, is_multi)
        if isinstance(columns, str):
            raise DataError(f"A table can't be used: {columns}.", received=f"{printable(str(table.path))}")
        is_cell = not columns.are_marks
        read = row_of_several if is_multi else row_of_one
        rows = [(line, read(table, columns, line, each, split)) for line, each in table.rows]
    separated = with_labels_of_cells if is_multi else with_one_label_each
    for line, row in separated(rows) if is_cell else rows:
        if isinstance(row, Row) and table.header and not beside:
            row = _looked_up(row, table.path, lookup)
        yield line, row


def _columns(table: Table, lookup: Lookup, is_multi: bool) -> Columns | str:
    def is_image(cell: str, use: str) -> bool:
        return bool(cell) and (is_bucket(cell) or lookup.find(cell, table.path, split_named(use)) is not None)

    marks = mark_columns if is_multi else None
    return choose_columns(table.header, table.sample(_SAMPLE_ROWS), is_image, marks)


def _marks(tables: Sequence[Table], lookup: Lookup) -> dict[Path, tuple[Table, Sequence[int]]]:
    """Return the tables with 0/1 label columns, with the indices of these columns."""
    found = {table.path: (table, _columns(table, lookup, True)) for table in tables if table.header}
    return {
        path: (table, columns.labels)
        for path, (table, columns) in found.items()
        if isinstance(columns, Columns) and columns.are_marks
    }


def _unused_splits(table: Table, lookup: Lookup, is_multi: bool) -> list[str]:
    columns = _columns(table, lookup, is_multi) if table.header else ""
    if isinstance(columns, str) or not columns.unused_split:
        return []
    name = f"{printable(table.path.name)}: column {printable(columns.unused_split)}"
    return [f"{name} sets no split, as its values are not train, validation or test"]


def _looked_up(row: Row, table: Path, lookup: Lookup) -> Row | str:
    if is_remote(row.uri) or not row.uri:
        return row
    path = lookup.find(row.uri, table, split_named(row.use) or split_among_words(table.stem))
    return replace(row, path=path) if isinstance(path, Path) else path or f"no such file: {row.uri}"


def _item(row: Row, file: Path, where: str, root: Path, fetched: Mapping[str, Path]) -> Item | str:
    """Return the item of the row's image on disk, or the reason why it cannot be used."""
    if not is_use(row.use):
        return f"the use is not training, validation, test or unassigned: {row.use}"
    if not row.uri:
        return "no URI"
    if not row.label and row.labels is None:
        return "no label"
    if is_bucket(row.uri):
        if not _is_object(row.uri):
            return f"not gs://BUCKET/NAME: {row.uri}"
        if row.uri not in fetched:
            return f"no such object: {row.uri}"
        return _labelled(row, printable(row.uri), fetched[row.uri])
    if is_remote(row.uri):
        raise DataError(
            "An import file names images by path or by gs:// URI; copy those of a server to one of them.",
            received=f"{where}: {printable(shown_address(row.uri))}",
        )
    if row.path is None and not is_file(row.uri, file):
        return f"no such file: {row.uri}"
    path = row.path or located(row.uri, file)
    return _labelled(row, name_of(path, root), path)


def _labelled(row: Row, name: str, path: Path) -> Item:
    item = Item(name, printable(row.label), split_named(row.use), path)
    return item if row.labels is None else with_labels(item, map(printable, row.labels))


def _is_object(uri: str) -> bool:
    bucket, _, name = uri.partition("://")[2].partition("/")
    return is_bucket(uri) and bool(bucket and name)
