"""What lies beside files of many records: the names of their labels, and the splits' folders.

In: a folder. Out: the files in it and in its splits' folders, and labels by number.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trainer.data.layouts.found import list_folder, split_named
from trainer.exits import DataError
from trainer.printable import printable

_NUMBERED_LABEL = re.compile(r"(\d+)\s*:\s*(.+)")


def files_of_splits(folder: Path) -> list[Path]:
    """Return the files in `folder` and in its folders that are named like splits. Raises DataError."""
    folders, files = list_folder(folder)
    for below in folders:
        files += list_folder(below)[1] if split_named(below.name) else []
    return files


def read_label_names(path: Path) -> dict[int, str]:
    """Read a file of lines `7:cat`, or of plain names, the first being label 0; {} if there is no file.

    Raises DataError for one that can't be read.
    """
    try:
        text = path.read_text("utf-8", "backslashreplace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(
            f"{path.name} can't be read. Received: {printable(str(path.parent))} ({error.strerror})"
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [_NUMBERED_LABEL.fullmatch(line) for line in lines]
    if lines and all(numbered):
        return {int(match[1]): match[2] for match in numbered if match}
    return dict(enumerate(lines))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, None if there is no such file or it can't be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
