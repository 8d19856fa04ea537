"""Tables that list images: Vertex AI import files and tables of other tools.

Vertex AI's files are CSV with rows of `[ML_USE,]URI,label`, and JSONL with `imageGcsUri`,
`classificationAnnotation.displayName` and the resource label `aiplatform.googleapis.com/ml_use`. Other tables
are CSV, TSV and JSONL with named columns in any order, as used by Kaggle and Hugging Face. URIs are paths
relative to the table, on disk or in its bucket, absolute paths, file:// URLs or gs:// URIs. With named
columns they can also be file names without folder or extension. Each usable row becomes an item. Each other
row becomes a rejection that names the line and counts as damaged.
"""

from __future__ import annotations

import filecmp
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from trainer.data.formats import SNIFF_BYTES
from trainer.data.items import Item, Rejection, normalized
from trainer.data.readers.read_result import (
    ReadResult,
    display_name,
    is_picture,
    list_files,
    list_folder,
    split_among_words,
    split_named,
)
from trainer.data.readers.several_labels import (
    describe_empty_columns,
    describe_unlabelled,
    find_mark_columns,
    merge_rows,
    read_multi_label_row,
    split_label_cells,
    with_labels,
)
from trainer.data.readers.tables import (
    ANNOTATIONS,
    Columns,
    Table,
    TableRow,
    build_table,
    choose_columns,
    detect_encoding,
    is_remote,
    is_use,
    read_csv,
    read_error,
    read_single_label_row,
    read_vertex_row,
    require_one_label_each,
)
from trainer.errors import DataError
from trainer.sanitize import printable, shown_address, without_secrets
from trainer.storage.store import is_bucket

_EXAMPLES = 2


class Lookup:
    """Index of the files below one folder, by name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, uri: str, table: Path, split: str | None) -> Path | str | None:
        """Return the image that `uri` refers to in `table`, or None if there is none.

        Of several matches, the one in a folder of the row's `split` is chosen, or the first if all are
        copies. Returns the reason as text if the name is ambiguous.
        """
        if is_file(uri, table):
            return resolve_path(uri, table)
        parts = tuple(normalized(part) for part in PurePosixPath(uri.replace("\\", "/")).parts)
        if not parts or parts[0] == "/" or ".." in parts:
            return None
        matches = [
            path
            for path in self._by_name.get(parts[-1], ())
            if self._has_suffix(path, parts) and is_picture(path)
        ]
        if len(matches) > 1 and split is not None:
            matches = [path for path in matches if self.find_split(path) == split] or matches
        if len(matches) > 1 and _are_copies(matches):
            return matches[0]
        if len(matches) > 1:
            names = ", ".join(str(path.relative_to(self._root)) for path in matches[:_EXAMPLES])
            return f"ambiguous name: several images are called {uri}: {names}"
        return matches[0] if matches else None

    def find_split(self, path: Path) -> str | None:
        """Return the split of the topmost folder with a split name above `path`, or None."""
        try:
            folders = path.relative_to(self._root).parts[:-1]
        except ValueError:
            return None
        return next((split for split in map(split_named, folders) if split), None)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Files by name, with and without extension."""
        paths: defaultdict[str, list[Path]] = defaultdict(list)
        for path in list_files(self._root):
            for name in {normalized(path.name), normalized(path.stem)}:
                paths[name].append(path)
        return paths

    def _has_suffix(self, path: Path, parts: tuple[str, ...]) -> bool:
        folders = tuple(map(normalized, path.relative_to(self._root).parts[:-1]))
        suffix = parts[:-1]
        return not suffix or folders[-len(suffix) :] == suffix


def resolve_path(uri: str, table: Path) -> Path:
    """Return the path that `uri` refers to, relative to the folder of `table`."""
    if uri.lower().startswith("file://"):
        return Path(unquote("/" + uri[len("file://") :].partition("/")[2]))
    path = table.parent / uri
    return Path(os.path.normpath(path)) if ".." in path.parts else path


def _are_copies(paths: Sequence[Path]) -> bool:
    """Return whether all files have the same bytes; False for placeholders of a bucket's images."""
    try:
        with open(paths[0], "rb") as file:
            has_data = any(file.read(SNIFF_BYTES))
        return has_data and all(filecmp.cmp(paths[0], path, shallow=False) for path in paths[1:])
    except OSError:
        return False


def is_file(uri: str, table: Path) -> bool:
    """Return whether `uri` is the path of a file, relative to the folder of `table`."""
    try:
        return resolve_path(uri, table).is_file()
    except (OSError, ValueError):
        # The path is too long or contains invalid characters.
        return False


SUFFIXES = (".csv", ".tsv", ".jsonl")
_SAMPLE_ROWS = 200
_PROBED_ROWS = 5


@dataclass(frozen=True)
class Buckets:
    """Download of images from buckets."""

    fetch: Callable[[Sequence[str]], Mapping[str, Path]]
    """Maps gs:// URIs of objects to local copies; missing objects are left out."""
    base_uri: str = ""
    """gs:// folder of an import file that was downloaded alone, to which relative paths of its rows refer."""


def find_import_files(folder: Path, is_multi: bool = False) -> list[Path]:
    """Return the tables that list images, in `folder`, its split folders and its folders of tables.

    A folder of tables contains tables and nothing else.
    """
    lookup = Lookup(folder)
    return [path for path in _find_tables(folder) if _find_problem(path, lookup, is_multi) is None]


def describe_unused_tables(folder: Path, used: Sequence[Path] = (), is_multi: bool = False) -> list[str]:
    """Return a sentence with the reason for each unusable table in `folder` that is not in `used`."""
    lookup = Lookup(folder)
    problems = {
        path: _find_problem(path, lookup, is_multi) for path in _find_tables(folder) if path not in used
    }
    return [
        f"{display_name(path, folder)} is not used: {problem}"
        for path, problem in problems.items()
        if problem
    ]


def has_columns(path: Path) -> bool:
    """Return whether the columns of a table have names, unlike those of Vertex AI's import files."""
    return bool(_read_table(path).header)


def _find_tables(folder: Path) -> list[Path]:
    folders, files = list_folder(folder)
    for subfolder in folders:
        inner_folders, inner_files = list_folder(subfolder)
        has_only_tables = not inner_folders and all(path.suffix.lower() in SUFFIXES for path in inner_files)
        files += inner_files if has_only_tables or split_named(subfolder.name) else []
    return [path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()]


def _find_problem(path: Path, lookup: Lookup, is_multi: bool) -> str | None:
    """Return why a table cannot be used, or None if it can."""
    try:
        table = _read_table(path)
    except DataError:
        return "it is not UTF-8 text"
    if not table.header:
        rows = [read_vertex_row(table.path, cells, is_multi) for _, cells in table.rows[:_PROBED_ROWS]]
        uris = [row.uri for row in rows if isinstance(row, TableRow)]
        return None if any(is_remote(uri) or is_file(uri, path) for uri in uris) else "it lists no images"
    if "submission" in path.stem.lower():
        return "a submission form contains no true labels"
    if path.stem.lower().endswith(("prediction", "predictions")):
        return "its name suggests predictions of a model, not labels"
    columns = _choose_columns(table, lookup, is_multi)
    if isinstance(columns, str):
        return columns
    if not columns.is_resolved:
        example = next((cells[columns.path] for cells in table.sample(1)), "")
        return (
            f"no image in its column {table.header[columns.path]} exists (first: {printable(example)}); use "
            "paths relative to the table, or file names"
        )
    return None


def read_import_files(
    files: list[Path], root: Path, buckets: Buckets, is_multi: bool = False, group_column: str | None = None
) -> ReadResult:
    """Read tables; item names are paths relative to `root`, or URIs for images of a bucket.

    `group_column` is the name of the column with the group of each image. With `is_multi` an image has any
    number of labels, in one row or several, instead of one class. All images of buckets are downloaded in one
    call. Raises DataError for a file that is not text, for unrecognized columns, for contradictory tables,
    for a row with the URL of a server, and the errors that `buckets.fetch` raises.
    """
    lookup = Lookup(root)
    result, listed = ReadResult(), _ListedImages()
    tables = _exclude_tables_without_split([_read_table(file) for file in files], result)
    splits = _find_table_splits(tables)
    read_rows = partial(_read_rows, base_uri=buckets.base_uri, is_multi=is_multi, group_column=group_column)
    rows = [
        (
            table,
            f"{display_name(table.path, root)}:{line}",
            row if isinstance(row, str) else _with_base_uri(row, buckets.base_uri),
        )
        for table in tables
        for line, row in read_rows(table, lookup, splits.get(table.path, ""))
    ]
    result.warnings += [warning for table in tables for warning in _unused_splits(table, lookup, is_multi)]
    uris = [row.uri for _, _, row in rows if not isinstance(row, str) and _is_object(row.uri)]
    local_copies = buckets.fetch(uris) if uris else {}
    for table, location, row in rows:
        item = row if isinstance(row, str) else _build_item(row, table.path, location, root, local_copies)
        if isinstance(item, str):
            result.rejections.append(Rejection(location, printable(without_secrets(item))))
        elif (new := item if is_multi else listed.add(item, table, location)) is not None:
            result.items.append(new)
    if is_multi:
        result.items = merge_rows(result.items)
        empty = describe_empty_columns(_find_marks(tables, lookup))
        result.warnings += [*describe_unlabelled(result.items), *empty]
    return _set_splits_of_folders(result, tables, lookup)


def _exclude_tables_without_split(tables: list[Table], result: ReadResult) -> list[Table]:
    """Drop a table without a split beside `train.csv` and `test.csv`; warnings are added to `result`."""
    splits = _find_table_splits(tables)
    used = [table for table in tables if not splits or not table.header or table.path in splits]
    names = printable(", ".join(table.path.name for table in used))
    result.warnings += [
        f"{printable(table.path.name)} is not used: it belongs to no split, unlike {names}"
        for table in tables
        if table not in used
    ]
    return used


def _find_table_splits(tables: Sequence[Table]) -> dict[Path, str]:
    """Return the split of each table with named columns, by path.

    The split is that of the table's folder, or, if no folder has one, that of its file name if these differ.
    """
    folders = {table.path: split_named(table.path.parent.name) for table in tables if table.header}
    names = {table.path: split_among_words(table.path.stem) for table in tables if table.header}
    splits = folders if any(folders.values()) else names if len(set(names.values()) - {None}) > 1 else {}
    return {path: split for path, split in splits.items() if split}


def _set_splits_of_folders(result: ReadResult, tables: Sequence[Table], lookup: Lookup) -> ReadResult:
    """Set splits from the images' folders if no table defines a split and every image has a split folder.

    Applies only if all tables have named columns and the folders name more than one split.
    """
    splits = [lookup.find_split(item.path) for item in result.items]
    has_no_split = all(table.header for table in tables) and not any(item.split for item in result.items)
    if has_no_split and None not in splits and len(set(splits)) > 1:
        result.items = [replace(item, split=split) for item, split in zip(result.items, splits, strict=True)]
    return result


class _ListedImages:
    """Images that are already listed, by name."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[Item, Table]] = {}

    def add(self, item: Item, table: Table, location: str) -> Item | None:
        """Return `item` under a unique name, or None if it is already listed. Raises DataError."""
        earlier, other = self._first.setdefault(item.name, (item, table))
        if earlier is item:
            return item
        if table.header and other.header and (earlier.label, earlier.split) == (item.label, item.split):
            return None
        if table.header and other.header and table is not other:
            raise DataError(
                "Two tables have different labels or splits for an image.",
                "Correct one of them, or use a single table as data.",
                received=f"{printable(other.path.name)} ({earlier.label}) and {location} ({item.label}) "
                f"for {item.name}",
            )
        # A repeated file keeps its own row, so that conflicting labels are detected.
        return replace(item, name=f"{item.name}#{location}")


def _with_base_uri(row: TableRow, base_uri: str) -> TableRow:
    is_relative = row.uri and not is_remote(row.uri) and not row.uri.lower().startswith(("/", "file://"))
    return replace(row, uri=f"{base_uri}/{row.uri}") if base_uri and is_relative else row


def _read_table(path: Path) -> Table:
    if path.suffix.lower() != ".jsonl":
        return read_csv(path, lambda cell: bool(cell) and is_file(cell, path))
    try:
        with open(path, encoding=detect_encoding(path), newline="") as file:
            lines = [(number, text) for number, text in enumerate(file, start=1) if text.strip()]
    except (UnicodeError, OSError) as error:
        raise read_error(path, error) from error
    objects = [(number, value) for number, text in lines if isinstance(value := _parse(text), dict)]
    has_columns = len(objects) == len(lines) and not any(set(value) & ANNOTATIONS for _, value in objects)
    if has_columns:
        return build_table(path, objects)
    return Table(path, (), [(number, [text]) for number, text in lines])


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_rows(
    table: Table, lookup: Lookup, split: str, base_uri: str, is_multi: bool, group_column: str | None
) -> Iterator[tuple[int, TableRow | str]]:
    """Yield each line with its row, or with the reason why it cannot be used."""
    groups = {} if group_column is None else _read_groups(table, group_column)
    # A displayName in Vertex AI's JSON and the name of a column are single labels and are not separated.
    is_cell = bool(table.header) or table.path.suffix.lower() != ".jsonl"
    if not table.header:
        rows = [(line, read_vertex_row(table.path, cells, is_multi)) for line, cells in table.rows]
    else:
        columns = _choose_columns(table, lookup, is_multi)
        if isinstance(columns, str):
            raise DataError(f"A table cannot be used: {columns}.", received=printable(str(table.path)))
        is_cell = not columns.are_marks
        read_row = read_multi_label_row if is_multi else read_single_label_row
        rows = [(line, read_row(table, columns, line, cells, split)) for line, cells in table.rows]
    separate = split_label_cells if is_multi else require_one_label_each
    for line, row in separate(rows) if is_cell else rows:
        if isinstance(row, TableRow) and table.header and not base_uri:
            row = _look_up(row, table.path, lookup)
        yield line, row if isinstance(row, str) or not groups else replace(row, group=groups.get(line))


def _read_groups(table: Table, column: str) -> dict[int, str | None]:
    """Return the value in `column` by line, None for an empty cell. Raises DataError without the column."""
    if column not in table.header:
        raise DataError(
            "A table has no column with the name in data.group.",
            f"Its columns are {', '.join(table.header)[:200] or 'without names'}.",
            received=f"column:{column}, {printable(str(table.path))}",
        )
    index = table.header.index(column)
    return {line: cells[index] or None for line, cells in table.rows if index < len(cells)}


def _choose_columns(table: Table, lookup: Lookup, is_multi: bool) -> Columns | str:
    def is_image(cell: str, use: str) -> bool:
        return bool(cell) and (is_bucket(cell) or lookup.find(cell, table.path, split_named(use)) is not None)

    marks = find_mark_columns if is_multi else None
    return choose_columns(table.header, table.sample(_SAMPLE_ROWS), is_image, marks)


def _find_marks(tables: Sequence[Table], lookup: Lookup) -> dict[Path, tuple[Table, Sequence[int]]]:
    """Return the tables with 0/1 label columns, with the indices of these columns."""
    columns_by_path = {
        table.path: (table, _choose_columns(table, lookup, True)) for table in tables if table.header
    }
    return {
        path: (table, columns.labels)
        for path, (table, columns) in columns_by_path.items()
        if isinstance(columns, Columns) and columns.are_marks
    }


def _unused_splits(table: Table, lookup: Lookup, is_multi: bool) -> list[str]:
    columns = _choose_columns(table, lookup, is_multi) if table.header else ""
    if isinstance(columns, str) or not columns.unused_split:
        return []
    name = f"{printable(table.path.name)}: column {printable(columns.unused_split)}"
    return [f"{name} is not used as split: its values are not train, validation or test"]


def _look_up(row: TableRow, table: Path, lookup: Lookup) -> TableRow | str:
    if is_remote(row.uri) or not row.uri:
        return row
    path = lookup.find(row.uri, table, split_named(row.use) or split_among_words(table.stem))
    return replace(row, path=path) if isinstance(path, Path) else path or f"no such file: {row.uri}"


def _build_item(
    row: TableRow, file: Path, location: str, root: Path, local_copies: Mapping[str, Path]
) -> Item | str:
    """Return the item of the row's image on disk, or the reason why it cannot be used."""
    if not is_use(row.use):
        return f"the split is not training, validation, test or unassigned: {row.use}"
    if not row.uri:
        return "no URI"
    if not row.label and row.labels is None:
        return "no label"
    if is_bucket(row.uri):
        if not _is_object(row.uri):
            return f"not gs://BUCKET/NAME: {row.uri}"
        if row.uri not in local_copies:
            return f"no such object: {row.uri}"
        return _labelled_item(row, printable(row.uri), local_copies[row.uri])
    if is_remote(row.uri):
        raise DataError(
            "A table refers to an image on a web server, which is not supported.",
            "Copy the images to a folder or a bucket, and list them by path or by gs:// URI.",
            received=f"{location}: {printable(shown_address(row.uri))}",
        )
    if row.path is None and not is_file(row.uri, file):
        return f"no such file: {row.uri}"
    path = row.path or resolve_path(row.uri, file)
    return _labelled_item(row, display_name(path, root), path)


def _labelled_item(row: TableRow, name: str, path: Path) -> Item:
    item = Item(name, printable(row.label), split_named(row.use), path, group=row.group)
    return item if row.labels is None else with_labels(item, map(printable, row.labels))


def _is_object(uri: str) -> bool:
    bucket, _, name = uri.partition("://")[2].partition("/")
    return is_bucket(uri) and bool(bucket and name)
