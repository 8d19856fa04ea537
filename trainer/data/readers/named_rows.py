"""Rows of tables with named columns.

Each function converts the cells of a row to a `Row`, or to the reason why the row cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trainer.data.readers.columns import Columns
from trainer.data.readers.labels_in_cells import labels_in
from trainer.data.readers.several_labels import marked_labels
from trainer.data.readers.tables import Table
from trainer.data.readers.vertex_rows import ONE_CLASS, Row


def row_of_several(table: Table, columns: Columns, line: int, cells: Sequence[str], split: str) -> Row | str:
    """Return the row of an image with any number of labels, or the reason why it cannot be used."""
    if len(cells) != len(table.header):
        return _of_other_cells(table, cells)
    marked = marked_labels(table, line, cells, columns.labels) if columns.are_marks else None
    labels = (cells[columns.labels[0]],) if marked is None else marked
    use = cells[columns.split] if columns.split is not None else ""
    return Row(use or split, cells[columns.path], "", labels=labels)


def _of_other_cells(table: Table, cells: Sequence[str]) -> str:
    return f"it has {len(cells)} cells, and there are {len(table.header)} columns"


def row_of_one(table: Table, columns: Columns, line: int, cells: Sequence[str], split: str) -> Row | str:
    """Return the row of an image with one class, or the reason why it cannot be used."""
    if len(cells) != len(table.header):
        return _of_other_cells(table, cells)
    label = cells[columns.labels[0]]
    if len(columns.labels) > 1:
        chosen = [table.header[column] for column in columns.labels if cells[column] in ("1", "1.0")]
        if len(chosen) != 1:
            return f"{len(chosen)} classes have a 1; {ONE_CLASS}"
        (label,) = chosen
    use = cells[columns.split] if columns.split is not None else ""
    return Row(use or split, cells[columns.path], label)


def with_one_label_each(rows: Sequence[tuple[int, Row | str]]) -> Iterator[tuple[int, Row | str]]:
    """Yield rows with the one label in their cell, or with the reason if it contains several."""
    column = {row.label for _, row in rows if isinstance(row, Row)}
    labels = {label: labels_in(label, column) for label in column}
    for line, row in rows:
        yield line, _with_one_label(row, labels[row.label]) if isinstance(row, Row) else row


def _with_one_label(row: Row, labels: Sequence[str]) -> Row | str:
    if len(labels) > 1:
        return f"several labels in one cell: {row.label}; {ONE_CLASS}"
    return replace(row, label=labels[0] if labels else "")
