"""Vertex AI's import files: one row for each image.

In: CSV files with rows of `[ML_USE,]URI,label`, as Vertex AI wants them or as a spreadsheet saves them
(with a header, semicolons or tabs, UTF-16); or JSONL files with `imageGcsUri`,
`classificationAnnotation.displayName` and the resource label `aiplatform.googleapis.com/ml_use`.
URIs are paths relative to the import file, here or in its bucket, absolute paths, file:// URLs,
or gs:// URIs. Out: an item for each row; a rejection that names the line for each row that can't
be used, which counts as damaged.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote

from trainer.data.items import Item, Rejection
from trainer.data.layouts.found import Found, list_folder, name_of, split_named
from trainer.exits import DataError
from trainer.printable import printable, shown_address, without_secrets
from trainer.storage.store import is_bucket

SUFFIXES = (".csv", ".jsonl")
_USE_LABEL = "aiplatform.googleapis.com/ml_use"
_HEADS = frozenset({"label", "labels", "class", "class_name", "category", "species"})
_LOOK_BYTES, _LOOK_LINES = 65_536, 5
_REMOTE_SCHEMES = ("gs://", "http://", "https://")


@dataclass(frozen=True)
class Buckets:
    """How images come here that are in buckets."""

    fetch: Callable[[Sequence[str]], Mapping[str, Path]]
    """From gs:// URIs of objects to their local copies; those that aren't there are left out."""
    beside: str = ""
    """The gs:// folder of an import file that came alone: relative paths of its rows mean images there."""


@dataclass(frozen=True)
class _Row:
    """What one line says, before anything is looked for on disk."""

    use: str
    uri: str
    label: str


def find_import_files(folder: Path) -> list[Path]:
    """Return the files in `folder` that look like import files: their first row names an image."""
    files = [path for path in list_folder(folder)[1] if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [path for path in files if _looks_like_one(path)]


def read_import_files(files: list[Path], root: Path, buckets: Buckets) -> Found:
    """Read import files; items are named by their paths below `root`, those of a bucket by their URIs.

    The images of buckets come all at once. Raises DataError for a file that isn't text and
    for a row that points to a server, and what `buckets.fetch` raises.
    """
    rows = [
        (file, f"{name_of(file, root)}:{line}", row if isinstance(row, str) else _placed(row, buckets.beside))
        for file in files
        for line, row in _rows(file)
    ]
    uris = [row.uri for _, _, row in rows if not isinstance(row, str) and _is_object(row.uri)]
    fetched = buckets.fetch(uris) if uris else {}
    found, seen = Found(), set[str]()
    for file, where, row in rows:
        item = row if isinstance(row, str) else _item(row, file, where, root, fetched)
        if isinstance(item, str):
            found.rejections.append(Rejection(where, printable(without_secrets(item))))
            continue
        # A file that is listed again keeps its own row, so that a contradiction comes to light.
        found.items.append(replace(item, name=f"{item.name}#{where}") if item.name in seen else item)
        seen.add(item.name)
    return found


def _placed(row: _Row, beside: str) -> _Row:
    is_relative = row.uri and not _is_remote(row.uri) and not row.uri.lower().startswith(("/", "file://"))
    return replace(row, uri=f"{beside}/{row.uri}") if beside and is_relative else row


def _looks_like_one(path: Path) -> bool:
    """Look at a few lines: the first may be a header, and an image may be missing."""
    try:
        with open(path, "rb") as file:
            text = file.read(_LOOK_BYTES).decode(_encoding(path), "replace")
    except OSError:
        return False
    lines = [line for line in text.splitlines() if line.strip()][:_LOOK_LINES]
    try:
        is_json = path.suffix.lower() == ".jsonl"
        rows = (
            [_json_row(line) for line in lines]
            if is_json
            else [_csv_row(cells) for cells in csv.reader(lines, delimiter=_delimiter(lines))]
        )
    except csv.Error:
        return False
    return any(not isinstance(row, str) and (_is_remote(row.uri) or _is_file(row.uri, path)) for row in rows)


def _rows(path: Path) -> Iterator[tuple[int, _Row | str]]:
    """Yield each line that isn't blank, from 1, as a row or as the reason why it is none."""
    try:
        with open(path, encoding=_encoding(path), newline="") as file:
            if path.suffix.lower() == ".jsonl":
                yield from (
                    (line, _json_row(text)) for line, text in enumerate(file, start=1) if text.strip()
                )
            else:
                yield from _csv_rows(file, path)
    except (UnicodeError, csv.Error, OSError) as error:
        raise DataError(
            "An import file can't be read; it should be UTF-8 text. "
            f"Received: {printable(str(path))} ({error})"
        ) from error


def _csv_rows(file: TextIO, path: Path) -> Iterator[tuple[int, _Row | str]]:
    delimiter = _delimiter([next(filter(str.strip, file), "")])
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter)
    for count, cells in enumerate(filter(any, reader)):
        if count or not _is_header(cells, path):
            yield reader.line_num, _csv_row(cells)


def _is_header(cells: list[str], path: Path) -> bool:
    """Return whether the first row names columns: a label called "label", and no image at all."""
    return cells[-1].strip().lower() in _HEADS and not any(_is_file(cell.strip(), path) for cell in cells)


def _encoding(path: Path) -> str:
    """UTF-16 where the file says so, as spreadsheets save it, else UTF-8. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _delimiter(lines: list[str]) -> str:
    """Return what separates the cells: where the comma is for decimals, spreadsheets write semicolons."""
    first = lines[0] if lines else ""
    return next((each for each in ",;\t" if each in first), ",")


def _csv_row(cells: list[str]) -> _Row | str:
    cells = [cell.strip() for cell in cells]
    if len(cells) == 2:
        return _Row("", *cells)
    if len(cells) == 3 and _is_use(cells[0]):
        return _Row(*cells)
    uses = "ML_USE is training, validation, test or unassigned"
    return f"not [ML_USE,]URI,label with one label, where {uses}: {', '.join(cells)}"


def _json_row(text: str) -> _Row | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(value, dict):
        return "not a JSON object"
    if "classificationAnnotations" in value:
        return "several labels (classificationAnnotations); one image has one class"
    annotation, resource = value.get("classificationAnnotation"), value.get("dataItemResourceLabels")
    label = annotation.get("displayName") if isinstance(annotation, dict) else None
    use = resource.get(_USE_LABEL, "") if isinstance(resource, dict) else ""
    uri = value.get("imageGcsUri")
    if not isinstance(uri, str) or not isinstance(label, str) or not isinstance(use, str):
        return "no imageGcsUri or no classificationAnnotation.displayName"
    return _Row(use.strip(), uri.strip(), label.strip())


def _is_use(cell: str) -> bool:
    return cell.lower() in ("", "unassigned") or split_named(cell) is not None


def _item(row: _Row, file: Path, where: str, root: Path, fetched: Mapping[str, Path]) -> Item | str:
    """Find the row's image on disk; return the reason if it can't be used."""
    if not _is_use(row.use):
        return f"the use is not training, validation, test or unassigned: {row.use}"
    if not row.label or not row.uri:
        return "no label" if row.uri else "no URI"
    if is_bucket(row.uri):
        if not _is_object(row.uri):
            return f"not gs://BUCKET/NAME: {row.uri}"
        if row.uri not in fetched:
            return f"no such object: {row.uri}"
        return Item(printable(row.uri), printable(row.label), split_named(row.use), fetched[row.uri])
    if _is_remote(row.uri):
        raise DataError(
            "An import file names images by path or by gs:// URI; copy those of a server to one of them. "
            f"Received: {where}: {printable(shown_address(row.uri))}"
        )
    if not _is_file(row.uri, file):
        return f"no such file: {row.uri}"
    path = _located(row.uri, file)
    return Item(name_of(path, root), printable(row.label), split_named(row.use), path)


def _is_object(uri: str) -> bool:
    bucket, _, name = uri.partition("://")[2].partition("/")
    return is_bucket(uri) and bool(bucket and name)


def _is_remote(uri: str) -> bool:
    return uri.lower().startswith(_REMOTE_SCHEMES)


def _located(uri: str, file: Path) -> Path:
    """Return the path that a URI means, seen from the import file."""
    if uri.lower().startswith("file://"):
        return Path(unquote("/" + uri[len("file://") :].partition("/")[2]))
    return file.parent / uri


def _is_file(uri: str, file: Path) -> bool:
    try:
        return _located(uri, file).is_file()
    except (OSError, ValueError):
        # Too long, or with characters that no path has.
        return False
