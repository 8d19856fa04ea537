"""Tables whose images have any number of labels (data.labels=multi).

Labels come from the cells of a label column, from 0/1 columns, or from several rows for one image. Warnings
cover images without labels and columns without a 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.data.items import Item, joined
from trainer.data.labels import normalized
from trainer.data.readers.labels_in_cells import labels_in
from trainer.data.readers.tables import Table
from trainer.data.readers.vertex_rows import Row
from trainer.errors import DataError
from trainer.sanitize import printable

MARKS: Mapping[str, bool] = {
    "1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False,
}  # fmt: skip
"""Values of a 0/1 label column, in any case."""
_SEPARATORS = (re.compile(r"\s*,\s*"), re.compile(r"\s+"))
_LEAST_MARKS = 0.5
"""Minimum share of the sampled cells that must be in `MARKS` for a 0/1 label column."""


def labels_of_cells(column: Collection[str]) -> dict[str, list[str]]:
    """Return the labels in each cell of a column; none for an empty cell.

    Labels are separated as in `labels_in`. Commas or whitespace also separate labels if this reduces the
    number of distinct labels in the column: `haze primary` in a column of many combinations contains two
    labels, while `golden retriever` beside `beagle` is one.
    """
    found = {cell: labels_in(cell, column) for cell in column}
    for separator in _SEPARATORS:
        parts = {cell: [part for label in labels for part in separator.split(label) if part]
                 for cell, labels in found.items()}  # fmt: skip
        if len(_distinct(parts)) < len(_distinct(found)):
            found = parts
    return found


def _distinct(labels: Mapping[str, Sequence[str]]) -> set[str]:
    return {label for several in labels.values() for label in several}


def with_labels_of_cells(rows: Iterable[tuple[int, Row | str]]) -> Iterator[tuple[int, Row | str]]:
    """Yield rows whose `labels` are cells of a column, with these replaced by the labels in the cells."""
    listed = list(rows)
    cells = {cell for _, row in listed if isinstance(row, Row) for cell in row.labels or ()}
    labels = labels_of_cells(cells)
    for line, row in listed:
        if isinstance(row, Row):
            row = replace(row, labels=tuple(label for cell in row.labels or () for label in labels[cell]))
        yield line, row


def mark_columns(rows: Sequence[Sequence[str]], columns: Iterable[int]) -> tuple[int, ...]:
    """Return those of `columns` with at least half of their cells in `MARKS` (0, 1, true, false)."""
    return tuple(
        column
        for column in columns
        if rows and sum(row[column].lower() in MARKS for row in rows) >= _LEAST_MARKS * len(rows)
    )


def marked_labels(table: Table, line: int, cells: Sequence[str], columns: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the columns that contain a 1. Raises DataError for a value not in `MARKS`."""
    for column in columns:
        if cells[column].lower() not in MARKS:
            raise DataError(
                "A column of a label holds 1 for the images that have it and 0 for all others; correct the "
                f"table, or rename the column {printable(table.header[column])} to a split or remove it if "
                f"it is none.",
                received=f"{printable(repr(cells[column]))} in column "
                f"{printable(table.header[column])}, {printable(table.path.name)}:{line}",
            )
    return tuple(table.header[column] for column in columns if MARKS[cells[column].lower()])


def merged(items: Sequence[Item]) -> list[Item]:
    """Return each image once, with the labels of all its rows. Raises DataError for conflicting splits."""
    found: dict[str, Item] = {}
    for item in items:
        earlier = found.setdefault(item.name, item)
        if earlier.split != item.split:
            splits = " and ".join(sorted({str(each.split or "no split") for each in (earlier, item)}))
            raise DataError(
                "One image is listed in two splits; keep one.", received=f"{item.name} in {splits}"
            )
        found[item.name] = with_labels(item, (*earlier.classes, *item.classes))
    return list(found.values())


def with_labels(item: Item, labels: Iterable[str]) -> Item:
    """Return `item` with these labels: distinct, sorted and in NFC."""
    distinct = tuple(sorted({normalized(label) for label in labels}))
    return replace(item, label=joined(distinct), labels=distinct)


def about_unlabelled(items: Sequence[Item]) -> list[str]:
    """Return a warning if some images have no label; they are used as negatives for all labels."""
    count = sum(not item.classes for item in items)
    if not count:
        return []
    images = "1 image has" if count == 1 else f"{count:,} images have"
    return [f"{images} no label; they count as images that none of the labels fits"]


def about_empty_columns(tables: Mapping[Path, tuple[Table, Sequence[int]]]) -> list[str]:
    """Return a warning for each label column without a 1; `tables` maps paths to tables and label columns."""
    return [
        f"{printable(path.name)}: column {printable(table.header[column])} has no 1, so it is no label"
        for path, (table, columns) in tables.items()
        for column in columns
        if not any(MARKS.get(cells[column].lower()) for _, cells in table.rows if len(cells) > column)
    ]
