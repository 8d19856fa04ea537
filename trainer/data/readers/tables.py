"""Text tables: CSV and TSV, including the dialects of spreadsheets, and JSON Lines.

A table consists of string cells with the line number of each row, and of column names if the first row
contains them. The cells are not interpreted.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.data.readers.columns import is_header
from trainer.data.readers.read_result import IMAGE_SUFFIXES
from trainer.errors import DataError
from trainer.sanitize import printable

_DELIMITERS = ",;\t|"
_SAMPLE_LINES = 20
_SEPARATOR = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)
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
        "A table of images can't be read.",
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
    separator = _SEPARATOR.fullmatch(lines[first]) if lines else None
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
