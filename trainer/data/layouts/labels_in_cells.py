"""The labels in a cell of a table.

In: the cell's text, and those of the whole column. Out: one label, or several: "cat;dog" is no class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

_ALWAYS = re.compile(r"\s*[;|]\s*")
# What separates labels only where each of the parts is a label by itself too: "big, dog" may be one.
_PERHAPS = (re.compile(r"\s*[,/+&]\s*"), re.compile(r"\s+"))


def labels_in(cell: str, column: Collection[str]) -> list[str]:
    """Return the labels in `cell`, none for an empty one; `column` has all cells of the column."""
    listed = _listed(cell)
    if listed is not None:
        return listed
    parts = [part for part in _ALWAYS.split(cell) if part]
    for separator in _PERHAPS:
        perhaps = [part for part in separator.split(cell) if part]
        if len(parts) < 2 <= len(perhaps) and all(part in column for part in perhaps):
            return perhaps
    return parts


def _listed(cell: str) -> list[str] | None:
    """Return the texts of a list as JSON and Python write it, None for any other cell."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        values = json.loads(cell.replace("'", '"'))
    except (ValueError, RecursionError):
        return None
    return [str(value) for value in values]
