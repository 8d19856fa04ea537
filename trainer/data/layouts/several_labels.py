"""Tables whose images have any number of labels, as data.labels multi reads them.

In: cells of a column of labels, columns of zeros and ones, rows that list one image several times. Out: the
labels of each row and of each image, and what a person should read of images without any.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.data.items import Item, joined
from trainer.data.labels import normalized
from trainer.data.layouts.labels_in_cells import labels_in
from trainer.data.layouts.tables import Table
from trainer.data.layouts.vertex_rows import Row
from trainer.exits import DataError
from trainer.printable import printable

MARKS: Mapping[str, bool] = {
    "1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False,
}  # fmt: skip
"""What a column of one label holds, in any case."""
_SEPARATORS = (re.compile(r"\s*,\s*"), re.compile(r"\s+"))
_LEAST_MARKS = 0.5
"""Share of the cells of a column that are marks, from which on it is one of a label."""


def labels_of_cells(column: Collection[str]) -> dict[str, list[str]]:
    """Return the labels in each of the cells of a column; none in an empty one.

    They are separated as `labels_in` has it; by commas or blanks also where the whole column then holds fewer
    different labels than it has cells: `haze primary` and `clear primary` are of three, `golden retriever`
    beside `beagle` is one.
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
    """Yield rows whose `labels` are the cells of a column, with the labels in these cells."""
    listed = list(rows)
    cells = {cell for _, row in listed if isinstance(row, Row) for cell in row.labels or ()}
    labels = labels_of_cells(cells)
    for line, row in listed:
        if isinstance(row, Row):
            row = replace(row, labels=tuple(label for cell in row.labels or () for label in labels[cell]))
        yield line, row


def mark_columns(rows: Sequence[Sequence[str]], columns: Iterable[int]) -> tuple[int, ...]:
    """Return those of `columns` that mostly hold zeros and ones."""
    return tuple(
        column
        for column in columns
        if rows and sum(row[column].lower() in MARKS for row in rows) >= _LEAST_MARKS * len(rows)
    )


def marked_labels(table: Table, line: int, cells: Sequence[str], columns: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the columns with a 1. Raises DataError for what is neither 0 nor 1."""
    for column in columns:
        if cells[column].lower() not in MARKS:
            raise DataError(
                "A column of a label holds 1 for the images that have it and 0 for all others; correct the "
                f"table, or rename the column {printable(table.header[column])} to a split or remove it if "
                f"it is none. Received: {printable(repr(cells[column]))} in column "
                f"{printable(table.header[column])}, {printable(table.path.name)}:{line}"
            )
    return tuple(table.header[column] for column in columns if MARKS[cells[column].lower()])


def merged(items: Sequence[Item]) -> list[Item]:
    """Return each image once, with the labels of all its rows. Raises DataError for rows of two splits."""
    found: dict[str, Item] = {}
    for item in items:
        earlier = found.setdefault(item.name, item)
        if earlier.split != item.split:
            splits = " and ".join(sorted({str(each.split or "no split") for each in (earlier, item)}))
            raise DataError(f"One image is listed in two splits; keep one. Received: {item.name} in {splits}")
        found[item.name] = with_labels(item, (*earlier.classes, *item.classes))
    return list(found.values())


def with_labels(item: Item, labels: Iterable[str]) -> Item:
    """Return `item` with these labels, in NFC, each once."""
    distinct = tuple(sorted({normalized(label) for label in labels}))
    return replace(item, label=joined(distinct), labels=distinct)


def about_unlabelled(items: Sequence[Item]) -> list[str]:
    """Return a sentence if some images have no label: that is an answer, too."""
    count = sum(not item.classes for item in items)
    if not count:
        return []
    images = "1 image has" if count == 1 else f"{count:,} images have"
    return [f"{images} no label; they count as images that none of the labels fits"]


def about_empty_columns(tables: Mapping[Path, tuple[Table, Sequence[int]]]) -> list[str]:
    """Return a sentence for each column of a label that no row has; tables: with their columns of labels."""
    return [
        f"{printable(path.name)}: column {printable(table.header[column])} has no 1, so it is no label"
        for path, (table, columns) in tables.items()
        for column in columns
        if not any(MARKS.get(cells[column].lower()) for _, cells in table.rows if len(cells) > column)
    ]
