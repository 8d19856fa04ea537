"""Detection of the image, label and split columns of a table.

Takes the column names and sample rows, and returns `Columns` or the reason why the table cannot be used. The
image column is detected by its cells. The label column is detected by its name, because any values could be
labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from trainer.data.readers.read_result import split_named

_PATHS = (
    "path", "filepath", "imagepath", "imgpath", "filename", "imagefilename", "imagename", "imgname",
    "imagefile", "file", "image", "img", "uri", "gcsuri", "imageuri", "imagegcsuri", "imageid", "imgid", "id",
    "name", "key", "picture", "photo", "caminho", "arquivo", "imagem", "url", "imageurl",
)  # fmt: skip
_LABELS = frozenset(
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
_WEAK_LABELS = frozenset({"tag", "tags", "y", "type"})
_SPLITS = frozenset(
    {"split", "set", "mluse", "use", "usage", "subset", "partition", "phase", "dataset", "fold"}
)
_OTHER_SPLITS = frozenset({"isvalid", "isvalidation", "isval", "istest", "istrain"})
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
    return any(_joined(cell) in _PATHS or _is_label(cell) for cell in cells)


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
            split_names = _SPLITS | _OTHER_SPLITS
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
        return _PATHS.index(name) if name in _PATHS else len(_PATHS), -counts[column]

    most = max(counts)
    columns = [column for column, count in enumerate(counts) if most and 2 * count >= most]
    columns = [column for column in columns if not _is_label(header[column])] or columns
    return min(
        columns or [c for c, name in enumerate(header) if _joined(name) in _PATHS], key=rank, default=None
    )


def _find_split_column(header: Sequence[str], rows: Sequence[Sequence[str]]) -> int | None:
    for column, name in enumerate(header):
        cells = [row[column] for row in rows if row[column]]
        if _joined(name) in _SPLITS and cells and 2 * sum(map(is_use, cells)) > len(cells):
            return column
    return None


def _find_unused_split(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    split_names = (_SPLITS | _OTHER_SPLITS) - _AMBIGUOUS_SPLITS
    named = [column for column, name in enumerate(header) if _joined(name) in split_names]
    return next((header[column] for column in named if len({row[column] for row in rows}) > 1), "")


def _find_label_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], taken: set[int | None]
) -> tuple[int, ...] | str:
    free = [column for column in range(len(header)) if column not in taken]
    named = [column for column in free if _is_label(header[column])]
    named = named or [column for column in free if _joined(header[column]) in _WEAK_LABELS]
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
    return bool(words) and words[-1] in _LABELS


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
