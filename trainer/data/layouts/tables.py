"""Tables of text: CSV and TSV as spreadsheets and other tools write them, and JSON lines.

In: a file. Out: its rows as texts, with the number of each one's line, and the names of the columns if the
first row has them. What a row means is up to those who read it.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.data.layouts.columns import is_header
from trainer.data.layouts.found import IMAGE_SUFFIXES
from trainer.exits import DataError
from trainer.printable import printable

_DELIMITERS = ",;\t|"
_LOOK_LINES = 20
_SEPARATOR = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)
_REMOTE_SCHEMES = ("gs://", "http://", "https://")


@dataclass(frozen=True)
class Table:
    """One file."""

    path: Path
    header: tuple[str, ...]
    """The names of the columns; empty if there is no such row."""
    rows: list[tuple[int, list[str]]]
    """(line, cells) of each row that isn't blank."""

    def sample(self, count: int) -> list[list[str]]:
        """Return the first rows that have as many cells as the header."""
        return [cells for _, cells in self.rows[: 2 * count] if len(cells) == len(self.header)][:count]


def read_csv(path: Path, is_file: Callable[[str], bool]) -> Table:
    """Read the CSV or TSV file at `path`. Raises DataError.

    is_file: whether a cell is the path of a file that is there.
    """
    try:
        text = path.read_bytes().decode(encoding_of(path))
        rows = _rows(text, lambda cell: looks_like_image(cell) or is_file(cell))
    except (UnicodeError, csv.Error, OSError) as error:
        raise unreadable(path, error) from error
    if not rows or any(looks_like_image(cell) or is_file(cell) for cell in rows[0][1]):
        return Table(path, (), rows)
    (_, first), others = rows[0], rows[1:]
    if not is_header(first) and not (_is_wordy(first) and _has_images(others)):
        return Table(path, (), rows)
    # A header of Vertex AI's three columns may stand above rows of two.
    is_of_rows = not others or any(len(cells) == len(first) for _, cells in others)
    return Table(path, tuple(first) if is_of_rows else (), others)


def table_of_objects(path: Path, objects: Iterable[tuple[int, dict[str, Any]]]) -> Table:
    """Return JSON objects, each with its line, as a table."""
    listed = list(objects)
    header = tuple(dict.fromkeys(key for _, each in listed for key in each))
    return Table(
        path, header, [(line, [_text(each.get(key, "")) for key in header]) for line, each in listed]
    )


def encoding_of(path: Path) -> str:
    """UTF-16 where the file says so, as spreadsheets save it, else UTF-8. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a file that is no text."""
    return DataError(
        f"An import file can't be read; it should be UTF-8 text. Received: {printable(str(path))} ({error})"
    )


def looks_like_image(cell: str) -> bool:
    """Return whether a cell is the name of an image, whether or not it is there."""
    return is_remote(cell) or PurePosixPath(cell).suffix.lower() in IMAGE_SUFFIXES


def is_remote(uri: str) -> bool:
    """Return whether `uri` is an address in a bucket or on a server."""
    return uri.lower().startswith(_REMOTE_SCHEMES)


def _has_images(rows: list[tuple[int, list[str]]]) -> bool:
    return any(looks_like_image(cell) for _, cells in rows[:_LOOK_LINES] for cell in cells)


def _is_wordy(cells: list[str]) -> bool:
    return all("/" not in cell and not cell.isdecimal() for cell in cells)


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None else json.dumps(value)


def _rows(text: str, is_image: Callable[[str], bool]) -> list[tuple[int, list[str]]]:
    lines = list(io.StringIO(text, newline=""))
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    stated = _SEPARATOR.fullmatch(lines[first]) if lines else None
    skipped = first + 1 if stated else 0
    delimiter = stated[1] if stated else _delimiter(lines[first:], is_image)
    reader = csv.reader(lines[skipped:], delimiter=delimiter)
    return [
        (skipped + reader.line_num, [cell.strip() for cell in cells])
        for cells in reader
        if any(map(str.strip, cells))
    ]


def _delimiter(lines: list[str], is_image: Callable[[str], bool]) -> str:
    """Return what separates the cells: where the comma is for decimals, spreadsheets write semicolons."""
    sample = [line for line in lines[: 2 * _LOOK_LINES] if line.strip()][:_LOOK_LINES]

    def fit(delimiter: str) -> tuple[int, bool, bool]:
        rows = list(csv.reader(sample, delimiter=delimiter))
        images = sum(any(is_image(cell.strip()) for cell in cells) for cells in rows if len(cells) > 1)
        lengths = {len(cells) for cells in rows}
        return images, len(lengths) == 1 and lengths != {1}, len(rows[0]) > 1 and is_header(rows[0])

    candidates = [each for each in _DELIMITERS if sample and each in sample[0]]
    return max(candidates, key=fit, default=",")
