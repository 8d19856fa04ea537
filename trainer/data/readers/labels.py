"""Label name files and split folders of record-based layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trainer.data.readers.read_result import list_folder, split_named
from trainer.errors import DataError
from trainer.sanitize import printable

_NUMBERED_LABEL = re.compile(r"(\d+)\s*:\s*(.+)")


def files_of_splits(folder: Path) -> list[Path]:
    """Return the files in `folder` and in its folders with split names. Raises DataError."""
    folders, files = list_folder(folder)
    for below in folders:
        files += list_folder(below)[1] if split_named(below.name) else []
    return files


def read_label_names(path: Path) -> dict[int, str]:
    """Read a file of `7:cat` lines, or of plain names numbered from 0; return {} if there is no file.

    Raises DataError if the file cannot be read.
    """
    try:
        text = path.read_text("utf-8", "backslashreplace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(
            f"{path.name} can't be read.", received=f"{printable(str(path.parent))} ({error.strerror})"
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [_NUMBERED_LABEL.fullmatch(line) for line in lines]
    if lines and all(numbered):
        return {int(match[1]): match[2] for match in numbered if match}
    return dict(enumerate(lines))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, or None if the file is missing or invalid."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
