"""Files of data.exclude and data.relabel: images that are left out, and images with another label.

Each is a table, .csv or .tsv, with a column `path` that contains names as in predictions.csv; suspects.csv of
a run or an audit is such a table. A table without column names has the path first, then the label.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.data.items import Item, joined, normalized
from trainer.data.readers import SourceContents
from trainer.data.readers.tables import Table, read_csv, split_labels
from trainer.errors import DataError
from trainer.sanitize import printable, text_of_cell

_PATH = "path"
_LABELS = ("new_label", "label")
"""Columns with the new label, by preference."""
_EXAMPLES = 3


def apply_corrections(contents: SourceContents, exclude: Path | None, relabel: Path | None) -> SourceContents:
    """Return `contents` without the images of `exclude`, and with the labels of `relabel`.

    Names that the source does not have are reported in the warnings. Raises DataError if a file cannot be
    read, if none of its names is in the source, if it has two labels for an image, or a label that no image
    has.
    """
    if relabel is not None:
        contents = _relabel(contents, relabel)
    return contents if exclude is None else _exclude(contents, exclude)


def _exclude(contents: SourceContents, file: Path) -> SourceContents:
    names = dict.fromkeys(name for name, _ in _read_rows(_read_table(file)))
    warning = _require_known(contents.items, names, file, "data.exclude")
    items = [item for item in contents.items if item.name not in names]
    done = _count(len(contents.items) - len(items), "left out by data.exclude")
    return contents._replace(items=items, warnings=[*contents.warnings, *done, *warning])


def _relabel(contents: SourceContents, file: Path) -> SourceContents:
    table = _read_table(file)
    labels = _unique_labels(table, _require_label_column(table))
    warning = _require_known(contents.items, labels, file, "data.relabel")
    is_multi = any(item.labels is not None for item in contents.items)
    classes = {label for item in contents.items for label in item.classes}
    column = set(labels.values())
    parse: Callable[[str], list[str]] = (
        (lambda cell: split_labels(cell, column)) if is_multi else (lambda cell: [cell])
    )
    new_labels = {name: [normalized(label) for label in parse(cell)] for name, cell in labels.items()}
    _require_classes(new_labels, classes, file)
    items = [
        _with_labels(item, new_labels[item.name]) if item.name in new_labels else item
        for item in contents.items
    ]
    count = sum(new.classes != old.classes for new, old in zip(items, contents.items, strict=True))
    done = _count(count, "relabelled by data.relabel")
    return contents._replace(items=items, warnings=[*contents.warnings, *done, *warning])


def _with_labels(item: Item, labels: Sequence[str]) -> Item:
    if item.labels is None:
        return replace(item, label=labels[0])
    return replace(item, label=joined(labels), labels=tuple(sorted(set(labels))))


def _read_table(file: Path) -> Table:
    if not file.is_file():
        raise DataError("There is no such file of images.", "Check the path.", received=printable(str(file)))
    table = read_csv(file, lambda cell: False)
    if table.header and _PATH not in table.header:
        raise DataError(
            "The file has no column path.",
            "Name the column with the images path; it contains names as in predictions.csv.",
            received=f"columns {', '.join(table.header)[:200]} in {printable(str(file))}",
        )
    return table


def _read_rows(table: Table, label_column: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield the name and the label of each row; the label is empty without `label_column`."""
    path_column = table.header.index(_PATH) if table.header else 0
    for line, cells in table.rows:
        if max(path_column, label_column or 0) >= len(cells):
            raise DataError(
                "A row has too few cells.",
                "Complete or delete it.",
                received=f"line {line} of {printable(str(table.path))}",
            )
        label = "" if label_column is None else text_of_cell(cells[label_column])
        yield text_of_cell(cells[path_column]), label


def _require_label_column(table: Table) -> int:
    if not table.header:
        return 1
    for name in _LABELS:
        if name in table.header:
            return table.header.index(name)
    raise DataError(
        "The file of data.relabel has no column new_label.",
        "Add a column new_label with the label that each image gets.",
        received=f"columns {', '.join(table.header)[:200]} in {printable(str(table.path))}",
    )


def _unique_labels(table: Table, label_column: int) -> dict[str, str]:
    labels: dict[str, str] = {}
    for name, label in _read_rows(table, label_column):
        if labels.setdefault(name, label) != label:
            raise DataError(
                "The file of data.relabel has two labels for an image.",
                "Keep one of the rows.",
                received=f"{printable(labels[name])} and {printable(label)} for {printable(name)}",
            )
    return labels


def _require_known(items: Sequence[Item], names: Mapping[str, object], file: Path, setting: str) -> list[str]:
    """Return a warning about names that the source does not have. Raises DataError if it has none of them."""
    unknown = sorted(names.keys() - {item.name for item in items})
    if not unknown:
        return []
    examples = ", ".join(map(printable, unknown[:_EXAMPLES]))
    if len(unknown) < len(names):
        count = "1 name is" if len(unknown) == 1 else f"{len(unknown)} names are"
        return [f"{count} in {setting} and not in the data, such as {examples}"]
    near = difflib.get_close_matches(unknown[0], [item.name for item in items], 1, 0.0)
    raise DataError(
        f"None of the images in the file of {setting} is in the data.",
        f"Use names as in predictions.csv, such as {printable(near[0]) if near else 'cats/1.jpg'}.",
        received=f"{examples} in {printable(str(file))}",
    )


def _require_classes(labels: Mapping[str, Sequence[str]], classes: set[str], file: Path) -> None:
    for name, new in labels.items():
        if not new or not set(new) <= classes:
            wrong = next((label for label in new if label not in classes), "")
            near = difflib.get_close_matches(wrong, sorted(classes), 1)
            raise DataError(
                "The file of data.relabel has a label that no image has.",
                f"Did you mean {near[0]}?" if near else f"The labels are {', '.join(sorted(classes))[:200]}.",
                received=f"{printable(wrong)!r} for {printable(name)} in {printable(str(file))}",
            )


def _count(count: int, change: str) -> list[str]:
    return [f"1 image is {change}" if count == 1 else f"{count} images are {change}"] if count else []
