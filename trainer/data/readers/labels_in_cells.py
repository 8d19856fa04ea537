"""Labels in a table cell.

A cell can contain several labels: "cat;dog" is not one class. Some separators are only recognized by
comparison with all cells of the column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

_ALWAYS = re.compile(r"\s*[;|]\s*")
# These separate labels only if each part is also a label of its own: "big, dog" may be one label.
_PERHAPS = (re.compile(r"\s*[,/+&]\s*"), re.compile(r"\s+"))


def labels_in(cell: str, column: Collection[str]) -> list[str]:
    """Return the labels in `cell`, none for an empty cell; `column` contains all cells of the column."""
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
    """Return the items of a JSON or Python list as strings, or None for any other cell."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        values = json.loads(cell.replace("'", '"'))
    except (ValueError, RecursionError):
        return None
    return [str(value) for value in values]
