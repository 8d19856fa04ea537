"""Rows of Vertex AI import files.

A row is the cells of a CSV row, `[ML_USE,]URI,label`, or a line of JSON.
Format: https://cloud.google.com/vertex-ai/docs/image-data/classification/prepare-data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.readers.columns import is_use

_USE_LABEL = "aiplatform.googleapis.com/ml_use"
ANNOTATIONS = frozenset({"imageGcsUri", "classificationAnnotation", "classificationAnnotations"})
"""Keys that identify a line of Vertex AI's JSON."""


ONE_CLASS = "one image has one class, unless data.labels=multi"
"""Suffix of rejection reasons for several labels in single-label mode."""


@dataclass(frozen=True)
class Row:
    """Contents of one row."""

    use: str
    uri: str
    label: str
    path: Path | None = None
    """Path of the image, if already resolved."""
    labels: tuple[str, ...] | None = None
    """With data.labels=multi all labels, or the cells that contain them; else None."""


def read_row(path: Path, cells: Sequence[str], is_multi: bool = False) -> Row | str:
    """Return the row in the file at `path`, or the reason why it cannot be used."""
    if path.suffix.lower() == ".jsonl":
        return _json_row(cells[0], is_multi)
    return _csv_row_of_several(cells) if is_multi else _csv_row(cells)


def _csv_row_of_several(cells: Sequence[str]) -> Row | str:
    """Read `[ML_USE,]URI[,LABEL...]`."""
    has_use = len(cells) > 1 and is_use(cells[0])
    use, uri, *labels = cells if has_use else ["", *cells]
    return Row(use, uri, "", labels=tuple(filter(None, labels)))


def _csv_row(cells: Sequence[str]) -> Row | str:
    if len(cells) == 2:
        return Row("", cells[0], cells[1])
    if len(cells) == 3 and is_use(cells[0]):
        return Row(cells[0], cells[1], cells[2])
    uses = "ML_USE is training, validation, test or unassigned"
    return f"not [ML_USE,]URI,label with one label, where {uses}: {', '.join(cells)}"


def _json_row(text: str, is_multi: bool) -> Row | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(value, dict):
        return "not a JSON object"
    if "classificationAnnotations" in value and not is_multi:
        return f"several labels (classificationAnnotations); {ONE_CLASS}"
    resource, uri = value.get("dataItemResourceLabels"), value.get("imageGcsUri")
    use = resource.get(_USE_LABEL, "") if isinstance(resource, dict) else ""
    if is_multi:
        labels = _names(value)
        if labels is None or not isinstance(uri, str) or not isinstance(use, str):
            return "no imageGcsUri, or a classificationAnnotations without displayName"
        return Row(use.strip(), uri.strip(), "", labels=labels)
    label = _name(value.get("classificationAnnotation"))
    if not isinstance(uri, str) or not isinstance(label, str) or not isinstance(use, str):
        return "no imageGcsUri or no classificationAnnotation.displayName"
    return Row(use.strip(), uri.strip(), label.strip())


def _names(value: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the labels of a line of JSON, or None if a label has no name."""
    several, one = value.get("classificationAnnotations") or [], value.get("classificationAnnotation")
    annotations = [*(several if isinstance(several, list) else [several]), *([one] if one else [])]
    names = [_name(each) for each in annotations]
    return None if None in names else tuple(name.strip() for name in names if name)


def _name(annotation: Any) -> str | None:
    name = annotation.get("displayName") if isinstance(annotation, dict) else None
    return name if isinstance(name, str) else None
