"""Rows of tables that list images: Vertex AI import files and tables with named columns.

A row of a Vertex AI file is the cells of a CSV row, `[ML_USE,]URI,label`, or a line of JSON. Each function
returns a `TableRow`, or the reason why the row cannot be used. A cell can contain several labels: "cat;dog"
is not one class.
Format: https://cloud.google.com/vertex-ai/docs/image-data/classification/prepare-data.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.data.readers.columns import Columns, is_use
from trainer.data.readers.tables import Table

_USE_LABEL = "aiplatform.googleapis.com/ml_use"
ANNOTATIONS = frozenset({"imageGcsUri", "classificationAnnotation", "classificationAnnotations"})
"""Keys that identify a line of Vertex AI's JSON."""
ONE_CLASS = "an image has one class, unless data.labels=multi"
"""Suffix of rejection reasons for several labels in single-label mode."""
_SEPARATOR = re.compile(r"\s*[;|]\s*")
# These separate labels only if each part is also a label of its own: "big, dog" may be one label.
_POSSIBLE_SEPARATORS = (re.compile(r"\s*[,/+&]\s*"), re.compile(r"\s+"))


@dataclass(frozen=True)
class TableRow:
    """Contents of one row."""

    use: str
    uri: str
    label: str
    path: Path | None = None
    """Path of the image, if already resolved."""
    labels: tuple[str, ...] | None = None
    """With data.labels=multi all labels, or the cells that contain them; else None."""


def read_vertex_row(path: Path, cells: Sequence[str], is_multi: bool = False) -> TableRow | str:
    """Return the row in the file at `path`, or the reason why it cannot be used."""
    if path.suffix.lower() == ".jsonl":
        return _read_json_row(cells[0], is_multi)
    return _read_multi_label_row(cells) if is_multi else _read_csv_row(cells)


def _read_multi_label_row(cells: Sequence[str]) -> TableRow | str:
    """Read `[ML_USE,]URI[,LABEL...]`."""
    has_use = len(cells) > 1 and is_use(cells[0])
    use, uri, *labels = cells if has_use else ["", *cells]
    return TableRow(use, uri, "", labels=tuple(filter(None, labels)))


def _read_csv_row(cells: Sequence[str]) -> TableRow | str:
    if len(cells) == 2:
        return TableRow("", cells[0], cells[1])
    if len(cells) == 3 and is_use(cells[0]):
        return TableRow(cells[0], cells[1], cells[2])
    uses = "ML_USE is training, validation, test or unassigned"
    return f"not [ML_USE,]URI,label with one label, where {uses}: {', '.join(cells)}"


def _read_json_row(text: str, is_multi: bool) -> TableRow | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "invalid JSON"
    if not isinstance(value, dict):
        return "not a JSON object"
    if "classificationAnnotations" in value and not is_multi:
        return f"several labels (classificationAnnotations); {ONE_CLASS}"
    resource, uri = value.get("dataItemResourceLabels"), value.get("imageGcsUri")
    use = resource.get(_USE_LABEL, "") if isinstance(resource, dict) else ""
    if is_multi:
        labels = _find_display_names(value)
        if labels is None or not isinstance(uri, str) or not isinstance(use, str):
            return "no imageGcsUri, or a classificationAnnotations without displayName"
        return TableRow(use.strip(), uri.strip(), "", labels=labels)
    label = _find_display_name(value.get("classificationAnnotation"))
    if not isinstance(uri, str) or not isinstance(label, str) or not isinstance(use, str):
        return "no imageGcsUri or no classificationAnnotation.displayName"
    return TableRow(use.strip(), uri.strip(), label.strip())


def _find_display_names(value: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the labels of a line of JSON, or None if a label has no name."""
    several, single = value.get("classificationAnnotations") or [], value.get("classificationAnnotation")
    annotations = [*(several if isinstance(several, list) else [several]), *([single] if single else [])]
    names = [_find_display_name(annotation) for annotation in annotations]
    return None if None in names else tuple(name.strip() for name in names if name)


def _find_display_name(annotation: Any) -> str | None:
    name = annotation.get("displayName") if isinstance(annotation, dict) else None
    return name if isinstance(name, str) else None


def cell_count_problem(table: Table, cells: Sequence[str]) -> str | None:
    """Return the reason if a row does not have one cell per column, or None."""
    if len(cells) == len(table.header):
        return None
    return f"wrong number of cells: {len(cells)} for {len(table.header)} columns"


def read_single_label_row(
    table: Table, columns: Columns, line: int, cells: Sequence[str], split: str
) -> TableRow | str:
    """Return the row of an image with one class, or the reason why it cannot be used."""
    if problem := cell_count_problem(table, cells):
        return problem
    label = cells[columns.labels[0]]
    if len(columns.labels) > 1:
        classes = [table.header[column] for column in columns.labels if cells[column] in ("1", "1.0")]
        if len(classes) != 1:
            return f"{len(classes)} classes have a 1; {ONE_CLASS}"
        (label,) = classes
    use = cells[columns.split] if columns.split is not None else ""
    return TableRow(use or split, cells[columns.path], label)


def require_one_label_each(
    rows: Sequence[tuple[int, TableRow | str]],
) -> Iterator[tuple[int, TableRow | str]]:
    """Yield rows with the one label in their cell, or with the reason if it contains several."""
    column = {row.label for _, row in rows if isinstance(row, TableRow)}
    labels = {label: split_labels(label, column) for label in column}
    for line, row in rows:
        yield line, _require_one_label(row, labels[row.label]) if isinstance(row, TableRow) else row


def _require_one_label(row: TableRow, labels: Sequence[str]) -> TableRow | str:
    if len(labels) > 1:
        return f"several labels in one cell: {row.label}; {ONE_CLASS}"
    return replace(row, label=labels[0] if labels else "")


def split_labels(cell: str, column: Collection[str]) -> list[str]:
    """Return the labels in `cell`, none for an empty cell; `column` contains all cells of the column.

    Semicolons, bars and the syntax of JSON and Python lists always separate labels. Commas, slashes, plus
    signs, ampersands and whitespace do if each part is also a cell of the column.
    """
    labels = _read_list(cell)
    if labels is not None:
        return labels
    parts = [part for part in _SEPARATOR.split(cell) if part]
    for separator in _POSSIBLE_SEPARATORS:
        candidates = [part for part in separator.split(cell) if part]
        if len(parts) < 2 <= len(candidates) and all(part in column for part in candidates):
            return candidates
    return parts


def _read_list(cell: str) -> list[str] | None:
    """Return the items of a JSON or Python list as strings, or None for any other cell."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        values = json.loads(cell)
    except RecursionError:
        return None
    except ValueError:
        values = _read_python_list(cell)
    return [str(value) for value in values] if isinstance(values, list) else None


def _read_python_list(cell: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes that escape nothing
            return ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
