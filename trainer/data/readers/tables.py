"""Text tables (CSV, TSV, JSON Lines): reading, choice of the columns, and interpretation of the rows.

`read_csv` and `build_table` return a `Table` of string cells with their line numbers. `choose_columns`
finds the image, label and split columns. The row readers return a `TableRow`, or the reason why a row
cannot be used.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.data.readers.read_result import IMAGE_SUFFIXES, split_named
from trainer.errors import DataError
from trainer.sanitize import printable

_PATH_NAMES = (
    "path", "filepath", "imagepath", "imgpath", "filename", "imagefilename", "imagename", "imgname",
    "imagefile", "file", "image", "img", "uri", "gcsuri", "imageuri", "imagegcsuri", "imageid", "imgid", "id",
    "name", "key", "picture", "photo", "caminho", "arquivo", "imagem", "url", "imageurl",
)  # fmt: skip
_LABEL_NAMES = frozenset(
    {
        "label",
        "labels",
        "class",
        "classes",
        "cls",
        "target",
        "category",
        "dx",
        "diagnosis",
        "diagnostic",
        "breed",
    }
    | {"species", "truth", "gt", "disease", "emotion", "classe", "rotulo", "categoria", "especie"}
)
_WEAK_LABEL_NAMES = frozenset({"tag", "tags", "y", "type"})
_SPLIT_NAMES = frozenset(
    {"split", "set", "mluse", "use", "usage", "subset", "partition", "phase", "dataset", "fold"}
)
_UNUSABLE_SPLIT_NAMES = frozenset({"isvalid", "isvalidation", "isval", "istest", "istrain"})
# Values of these columns often have another meaning: the dataset that a row comes from.
_AMBIGUOUS_SPLITS = frozenset({"set", "use", "usage", "dataset"})
_IGNORED_WORDS = frozenset({"name", "id", "text", "idx", "index", "str"})
_ONE, _ZERO = frozenset({"1", "1.0"}), frozenset({"0", "0.0"})


@dataclass(frozen=True)
class Columns:
    """Indices of the columns to use."""

    path: int
    labels: tuple[int, ...]
    """One column, or one-hot columns; with data.labels=multi any number of 0/1 columns may contain a 1."""
    split: int | None
    is_resolved: bool
    """Whether the images of some sample rows exist."""
    unused_split: str = ""
    """Name of a column that looks like the split column but has unrecognized values."""
    are_marks: bool = False
    """Whether `labels` are 0/1 columns, one per label (data.labels=multi)."""


def is_header(cells: Sequence[str]) -> bool:
    """Return whether a row contains column names."""
    return any(_joined(cell) in _PATH_NAMES or _is_label(cell) for cell in cells)


def is_use(cell: str) -> bool:
    """Return whether a cell is a valid ML_USE value: a split, "unassigned" or empty."""
    return cell.lower() in ("", "unassigned") or split_named(cell) is not None


def choose_columns(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_image: Callable[[str, str], bool],
    marks: Callable[[Sequence[Sequence[str]], Iterable[int]], tuple[int, ...]] | None = None,
) -> Columns | str:
    """Return the columns to use, or the reason why the table cannot be used.

    `rows` have as many cells as the header. `is_image(cell, split)` returns whether a cell of a row with this
    split is an image. `marks`, given with data.labels=multi, returns which of some columns are 0/1 columns,
    one per label; they are used if no column has the name of a label column.
    """
    split = _find_split_column(header, rows)
    uses = ["" if split is None else row[split] for row in rows]
    counts = [
        0 if column == split else sum(is_image(row[column], use) for row, use in zip(rows, uses, strict=True))
        for column in range(len(header))
    ]
    path = _find_path_column(header, counts)
    if path is None:
        return f"no column contains image names ({_format_names(header)})"
    unused = _find_unused_split(header, rows) if split is None else ""
    if marks is not None:
        free = [column for column in range(len(header)) if column not in (path, split)]
        if not any(_is_label(header[column]) for column in free):
            split_names = _SPLIT_NAMES | _UNUSABLE_SPLIT_NAMES
            mark_columns = marks(
                rows, [column for column in free if _joined(header[column]) not in split_names]
            )
            if mark_columns:
                return Columns(path, mark_columns, split, counts[path] > 0, unused, are_marks=True)
    labels = _find_label_columns(header, rows, {path, split})
    if isinstance(labels, str):
        return labels
    return Columns(path, labels, split, counts[path] > 0, unused)


def _find_path_column(header: Sequence[str], counts: Sequence[int]) -> int | None:
    def rank(column: int) -> tuple[int, int]:
        name = _joined(header[column])
        return _PATH_NAMES.index(name) if name in _PATH_NAMES else len(_PATH_NAMES), -counts[column]

    most = max(counts)
    columns = [column for column, count in enumerate(counts) if most and 2 * count >= most]
    columns = [column for column in columns if not _is_label(header[column])] or columns
    return min(
        columns or [c for c, name in enumerate(header) if _joined(name) in _PATH_NAMES],
        key=rank,
        default=None,
    )


def _find_split_column(header: Sequence[str], rows: Sequence[Sequence[str]]) -> int | None:
    for column, name in enumerate(header):
        cells = [row[column] for row in rows if row[column]]
        if _joined(name) in _SPLIT_NAMES and cells and 2 * sum(map(is_use, cells)) > len(cells):
            return column
    return None


def _find_unused_split(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    split_names = (_SPLIT_NAMES | _UNUSABLE_SPLIT_NAMES) - _AMBIGUOUS_SPLITS
    named = [column for column, name in enumerate(header) if _joined(name) in split_names]
    return next((header[column] for column in named if len({row[column] for row in rows}) > 1), "")


def _find_label_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], taken: set[int | None]
) -> tuple[int, ...] | str:
    free = [column for column in range(len(header)) if column not in taken]
    named = [column for column in free if _is_label(header[column])]
    named = named or [column for column in free if _joined(header[column]) in _WEAK_LABEL_NAMES]
    if not named:
        one_hot = [column for column in free if {row[column] for row in rows} <= _ONE | _ZERO]
        sums = [sum(row[column] in _ONE for column in one_hot) for row in rows]
        if len(one_hot) > 1 and 10 * sums.count(1) >= 9 * len(rows):
            return tuple(one_hot)
        multi = ", or set data.labels=multi for one 0/1 column per label" if len(one_hot) > 1 else ""
        names = _format_names(header)
        return f"no column has the name of a label column ({names}); rename the right one to label{multi}"
    best = min(named, key=lambda column: all(_is_number(row[column]) for row in rows))
    for column in named:
        pairs = {(row[best], row[column]) for row in rows}
        if not len(pairs) == len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs}):
            names = _format_names([header[index] for index in named])
            return f"several columns could be the label ({names}); keep one of them"
    return (best,)


def _is_label(name: str) -> bool:
    words = [word for word in _words(name) if word not in _IGNORED_WORDS]
    return bool(words) and words[-1] in _LABEL_NAMES


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]


def _joined(name: str) -> str:
    return "".join(_words(name))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?|", text) is not None


def _format_names(names: Sequence[str]) -> str:
    shown = ", ".join(name or "unnamed" for name in names[:8])
    return f"{shown}, ..." if len(names) > 8 else shown


_DELIMITERS = ",;\t|"
_SAMPLE_LINES = 20
_SEP_LINE = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)
_REMOTE_SCHEMES = ("gs://", "http://", "https://")


@dataclass(frozen=True)
class Table:
    """Contents of one table file."""

    path: Path
    header: tuple[str, ...]
    """Column names; empty if there is no header row."""
    rows: list[tuple[int, list[str]]]
    """(line, cells) of each row that is not blank."""

    def sample(self, count: int) -> list[list[str]]:
        """Return up to `count` of the first rows that have as many cells as the header."""
        return [cells for _, cells in self.rows[: 2 * count] if len(cells) == len(self.header)][:count]


def read_csv(path: Path, is_file: Callable[[str], bool]) -> Table:
    """Read the CSV or TSV file at `path`. Raises DataError.

    `is_file` returns whether a cell is the path of an existing file.
    """
    try:
        text = path.read_bytes().decode(detect_encoding(path))
        rows = _read_rows(text, lambda cell: looks_like_image(cell) or is_file(cell))
    except (UnicodeError, csv.Error, OSError) as error:
        raise read_error(path, error) from error
    if not rows or any(looks_like_image(cell) or is_file(cell) for cell in rows[0][1]):
        return Table(path, (), rows)
    (_, first), others = rows[0], rows[1:]
    if not is_header(first) and not (_may_be_names(first) and _has_images(others)):
        return Table(path, (), rows)
    # A header with Vertex AI's three columns can be followed by rows of two cells.
    is_header_of_rows = not others or any(len(cells) == len(first) for _, cells in others)
    return Table(path, tuple(first) if is_header_of_rows else (), others)


def build_table(path: Path, objects: Sequence[tuple[int, dict[str, Any]]]) -> Table:
    """Return JSON objects, each with its line number, as a table."""
    header = tuple(dict.fromkeys(key for _, value in objects for key in value))
    return Table(
        path, header, [(line, [_format(value.get(key, "")) for key in header]) for line, value in objects]
    )


def detect_encoding(path: Path) -> str:
    """Return "utf-16" if the file has its byte order mark, as some spreadsheets write, else "utf-8-sig".

    Raises OSError.
    """
    with open(path, "rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def read_error(path: Path, error: Exception) -> DataError:
    """Return the error for a file that is not valid text."""
    return DataError(
        "A table of images cannot be read.",
        "Save it as UTF-8 text.",
        received=f"{printable(str(path))} ({error})",
    )


def looks_like_image(cell: str) -> bool:
    """Return whether a cell is an image name or a remote URI; the image need not exist."""
    return is_remote(cell) or PurePosixPath(cell).suffix.lower() in IMAGE_SUFFIXES


def is_remote(uri: str) -> bool:
    """Return whether `uri` is a gs://, http:// or https:// address."""
    return uri.lower().startswith(_REMOTE_SCHEMES)


def _has_images(rows: list[tuple[int, list[str]]]) -> bool:
    return any(looks_like_image(cell) for _, cells in rows[:_SAMPLE_LINES] for cell in cells)


def _may_be_names(cells: list[str]) -> bool:
    return all("/" not in cell and not cell.isdecimal() for cell in cells)


def _format(value: Any) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None else json.dumps(value)


def _read_rows(text: str, is_image: Callable[[str], bool]) -> list[tuple[int, list[str]]]:
    lines = list(io.StringIO(text, newline=""))
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    separator = _SEP_LINE.fullmatch(lines[first]) if lines else None
    skipped = first + 1 if separator else 0
    delimiter = separator[1] if separator else _detect_delimiter(lines[first:], is_image)
    reader = csv.reader(lines[skipped:], delimiter=delimiter)
    return [
        (skipped + reader.line_num, [cell.strip() for cell in cells])
        for cells in reader
        if any(map(str.strip, cells))
    ]


def _detect_delimiter(lines: list[str], is_image: Callable[[str], bool]) -> str:
    """Return the cell delimiter; spreadsheets write semicolons in locales with a decimal comma."""
    sample = [line for line in lines[: 2 * _SAMPLE_LINES] if line.strip()][:_SAMPLE_LINES]

    def rank(delimiter: str) -> tuple[int, bool, bool]:
        rows = list(csv.reader(sample, delimiter=delimiter))
        images = sum(any(is_image(cell.strip()) for cell in cells) for cells in rows if len(cells) > 1)
        lengths = {len(cells) for cells in rows}
        return images, len(lengths) == 1 and lengths != {1}, len(rows[0]) > 1 and is_header(rows[0])

    candidates = [delimiter for delimiter in _DELIMITERS if sample and delimiter in sample[0]]
    return max(candidates, key=rank, default=",")


_USE_LABEL = "aiplatform.googleapis.com/ml_use"
ANNOTATIONS = frozenset({"imageGcsUri", "classificationAnnotation", "classificationAnnotations"})
"""Keys that identify a line of Vertex AI's JSON."""
ONE_CLASS = "an image has one class, unless data.labels=multi"
"""Suffix of rejection reasons for several labels in single-label mode."""
_LABEL_SEPARATOR = re.compile(r"\s*[;|]\s*")
# These separate labels only if each part is also a label of its own: "big, dog" may be one label.
_POSSIBLE_LABEL_SEPARATORS = (re.compile(r"\s*[,/+&]\s*"), re.compile(r"\s+"))


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
    group: str | None = None
    """Value in the column of data.group."""


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
    parts = [part for part in _LABEL_SEPARATOR.split(cell) if part]
    for separator in _POSSIBLE_LABEL_SEPARATORS:
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
