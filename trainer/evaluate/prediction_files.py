"""Reader and writer of predictions.csv.

The file has one row per image, from which every metric can be recomputed to the last digit. With one label
per image the columns are split, path, label, predicted and `probability:<class>`. With any number of labels
they are split, path, `label:<class>` and `predicted:<class>`, which are 0 or 1, and `probability:<class>`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainer.errors import UsageError
from trainer.evaluate.label_predictions import (
    MultiLabelPredictions,
    header_of,
    is_header,
    names_in,
    numbers_of_rows,
    read_rows,
)
from trainer.evaluate.metrics import AnyPredictions, Predictions
from trainer.sanitize import spreadsheet_cell, text_of_cell
from trainer.storage.local import write_text

_COLUMNS = ("split", "path", "label", "predicted")
_CLASS_COLUMN = "probability:"
_REMEDY = "Use the predictions.csv of a run."


def write_predictions(path: Path, predictions: Sequence[AnyPredictions]) -> None:
    """Write one CSV row per image of all splits, which have the same classes.

    Floats have every digit. A text that a spreadsheet would take for a formula is prefixed with an
    apostrophe, which `read_predictions` removes. Raises TemporaryError or UsageError.
    """
    text = io.StringIO(newline="")
    # Every text is quoted: in Python 3.10, a lone carriage return is lost otherwise.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(_header(predictions))
    for split in predictions:
        writer.writerows(_rows(split))
    write_text(path, text.getvalue())


def read_predictions(path: Path) -> list[AnyPredictions]:
    """Return what `write_predictions` wrote to `path`. Raises UsageError for any other content."""
    try:
        return parse_predictions(path.read_bytes().decode(), str(path))
    except OSError as error:
        raise UsageError(
            f"The file of predictions cannot be read: {error.strerror}.", "Check the path.", received=path
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"The file of predictions is not UTF-8: {error}.", _REMEDY, received=path) from None


def parse_predictions(text: str, path: str) -> list[AnyPredictions]:
    """Return the predictions in the `text` of the predictions.csv at `path`. Raises UsageError."""
    try:
        rows = [
            [*map(text_of_cell, row[: len(_COLUMNS)]), *row[len(_COLUMNS) :]]
            for row in csv.reader(io.StringIO(text, newline=""))
        ]
        header = rows[0] if rows else []
        is_multi = is_header(header)
        class_names = names_in(header) if is_multi else _read_header(header)
        read = read_rows if is_multi else _read_split
        _require_equal_lengths(rows)
        splits = dict.fromkeys(row[0] for row in rows[1:])
        return [read(split, [row for row in rows[1:] if row[0] == split], class_names) for split in splits]
    except (ValueError, csv.Error) as error:
        raise UsageError(
            f"The file is not a predictions.csv of trainer: {error}.", _REMEDY, received=path
        ) from None


def _header(predictions: Sequence[AnyPredictions]) -> list[str]:
    names = list(map(storable, predictions[0].class_names)) if predictions else []
    if predictions and isinstance(predictions[0], MultiLabelPredictions):
        return header_of(names)
    return [*_COLUMNS, *(_CLASS_COLUMN + name for name in names)]


def _rows(predictions: AnyPredictions) -> Iterator[list[str | float]]:
    if isinstance(predictions, MultiLabelPredictions):
        for name, numbers in zip(predictions.names, numbers_of_rows(predictions), strict=True):
            yield [*map(spreadsheet_cell, (predictions.split, storable(name))), *numbers]
        return
    class_names = [storable(name) for name in predictions.class_names]
    for name, label, predicted, probabilities in zip(
        predictions.names,
        predictions.labels.tolist(),
        predictions.predicted.tolist(),
        predictions.probabilities.astype(np.float64).tolist(),
        strict=True,
    ):
        # The csv module writes floats with repr, which has enough digits to restore the same value.
        texts = [predictions.split, storable(name), class_names[label], class_names[predicted]]
        yield [*map(spreadsheet_cell, texts), *probabilities]


def storable(text: str) -> str:
    """Return `text` with what UTF-8 cannot encode, such as undecodable bytes of a file name, escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_header(header: Sequence[str]) -> tuple[str, ...]:
    texts, classes = header[: len(_COLUMNS)], header[len(_COLUMNS) :]
    if tuple(texts) != _COLUMNS or not all(name.startswith(_CLASS_COLUMN) for name in classes):
        raise ValueError(f"its columns are not {', '.join(_COLUMNS)}, {_CLASS_COLUMN}<class>, ...")
    return tuple(name[len(_CLASS_COLUMN) :] for name in classes)


def _require_equal_lengths(rows: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} cells instead of {len(rows[0])}")


def _read_split(split: str, rows: Sequence[Sequence[str]], class_names: tuple[str, ...]) -> Predictions:
    index = {name: number for number, name in enumerate(class_names)}
    unknown = [row[2] for row in rows if row[2] not in index]
    if unknown:
        raise ValueError(f"the label {unknown[0]!r} has no column")
    return Predictions(
        split=split,
        names=tuple(row[1] for row in rows),
        labels=np.array([index[row[2]] for row in rows], dtype=np.int32),
        probabilities=np.array([[float(cell) for cell in row[len(_COLUMNS) :]] for row in rows]),
        class_names=class_names,
    )
