"""Tables whose images have any number of labels (data.labels=multi).

Labels come from the cells of a label column, from 0/1 columns, or from several rows for one image. Warnings
cover images without labels and columns without a 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.data.items import Item, joined, normalized
from trainer.data.readers.tables import Columns, Table, TableRow, cell_count_problem, split_labels
from trainer.errors import DataError
from trainer.sanitize import printable

MARKS: Mapping[str, bool] = {
    "1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False,
}  # fmt: skip
"""Values of a 0/1 label column, in any case."""
_SEPARATORS = (re.compile(r"\s*,\s*"), re.compile(r"\s+"))
_MIN_MARK_SHARE = 0.5
"""Minimum share of the sampled cells that must be in `MARKS` for a 0/1 label column."""


def split_cells(column: Collection[str]) -> dict[str, list[str]]:
    """Return the labels in each cell of a column; none for an empty cell.

    Labels are separated as in `split_labels`. Commas or whitespace also separate labels if this reduces the
    number of distinct labels in the column: `haze primary` in a column of many combinations contains two
    labels, while `golden retriever` beside `beagle` is one.
    """
    labels_by_cell = {cell: split_labels(cell, column) for cell in column}
    for separator in _SEPARATORS:
        parts = {cell: [part for label in labels for part in separator.split(label) if part]
                 for cell, labels in labels_by_cell.items()}  # fmt: skip
        if _count_distinct(parts) < _count_distinct(labels_by_cell):
            labels_by_cell = parts
    return labels_by_cell


def _count_distinct(labels_by_cell: Mapping[str, Sequence[str]]) -> int:
    return len({label for labels in labels_by_cell.values() for label in labels})


def read_multi_label_row(
    table: Table, columns: Columns, line: int, cells: Sequence[str], split: str
) -> TableRow | str:
    """Return the row of an image with any number of labels, or the reason why it cannot be used."""
    if problem := cell_count_problem(table, cells):
        return problem
    marked = _read_marks(table, line, cells, columns.labels) if columns.are_marks else None
    labels = (cells[columns.labels[0]],) if marked is None else marked
    use = cells[columns.split] if columns.split is not None else ""
    return TableRow(use or split, cells[columns.path], "", labels=labels)


def split_label_cells(rows: Iterable[tuple[int, TableRow | str]]) -> Iterator[tuple[int, TableRow | str]]:
    """Yield rows whose `labels` are cells of a column, with these replaced by the labels in the cells."""
    listed = list(rows)
    cells = {cell for _, row in listed if isinstance(row, TableRow) for cell in row.labels or ()}
    labels_by_cell = split_cells(cells)
    for line, row in listed:
        if isinstance(row, TableRow):
            labels = (label for cell in row.labels or () for label in labels_by_cell[cell])
            row = replace(row, labels=tuple(labels))
        yield line, row


def find_mark_columns(rows: Sequence[Sequence[str]], columns: Iterable[int]) -> tuple[int, ...]:
    """Return those of `columns` with at least half of their cells in `MARKS` (0, 1, true, false)."""
    return tuple(
        column
        for column in columns
        if rows and sum(row[column].lower() in MARKS for row in rows) >= _MIN_MARK_SHARE * len(rows)
    )


def _read_marks(table: Table, line: int, cells: Sequence[str], columns: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the columns that contain a 1. Raises DataError for a value not in `MARKS`."""
    for column in columns:
        if cells[column].lower() not in MARKS:
            raise DataError(
                "A 0/1 label column of a table has another value.",
                "Write 1 for the images that have the label and 0 for all others, or remove the column "
                f"{printable(table.header[column])} if it is not a label.",
                received=f"{printable(repr(cells[column]))} in column "
                f"{printable(table.header[column])}, {printable(table.path.name)}:{line}",
            )
    return tuple(table.header[column] for column in columns if MARKS[cells[column].lower()])


def merge_rows(items: Sequence[Item]) -> list[Item]:
    """Return each image once, with the labels of all its rows. Raises DataError for conflicting splits."""
    merged: dict[str, Item] = {}
    for item in items:
        earlier = merged.setdefault(item.name, item)
        if earlier.split != item.split:
            splits = " and ".join(sorted({earlier.split or "no split", item.split or "no split"}))
            raise DataError(
                "A table lists an image in two splits.",
                "Keep one of them.",
                received=f"{item.name} in {splits}",
            )
        merged[item.name] = with_labels(item, (*earlier.classes, *item.classes))
    return list(merged.values())


def with_labels(item: Item, labels: Iterable[str]) -> Item:
    """Return `item` with these labels: distinct, sorted and in NFC."""
    distinct = tuple(sorted({normalized(label) for label in labels}))
    return replace(item, label=joined(distinct), labels=distinct)


def describe_unlabelled(items: Sequence[Item]) -> list[str]:
    """Return a warning if some images have no label; they are used as negatives for all labels."""
    count = sum(not item.classes for item in items)
    if not count:
        return []
    images = "1 image has" if count == 1 else f"{count:,} images have"
    return [f"{images} no label; used as negatives for all labels"]


def describe_empty_columns(tables: Mapping[Path, tuple[Table, Sequence[int]]]) -> list[str]:
    """Return a warning for each label column without a 1; `tables` maps paths to tables and label columns."""
    return [
        f"{printable(path.name)}: column {printable(table.header[column])} is not used: it has no 1"
        for path, (table, columns) in tables.items()
        for column in columns
        if not any(MARKS.get(cells[column].lower()) for _, cells in table.rows if len(cells) > column)
    ]
