"""The rows of Vertex AI's import files.

In: the cells of a CSV row, `[ML_USE,]URI,label`, or a line of JSON. Out: a `Row`, or why it is none.
Format: https://cloud.google.com/vertex-ai/docs/image-data/classification/prepare-data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.layouts.columns import is_use

_USE_LABEL = "aiplatform.googleapis.com/ml_use"
ANNOTATIONS = frozenset({"imageGcsUri", "classificationAnnotation", "classificationAnnotations"})
"""The keys of a line of JSON that is Vertex AI's."""


@dataclass(frozen=True)
class Row:
    """What one line says."""

    use: str
    uri: str
    label: str
    path: Path | None = None
    """The image, if it was looked for already."""


def read_row(path: Path, cells: Sequence[str]) -> Row | str:
    """Return what a row of the file at `path` says, or the reason why it says nothing."""
    return _json_row(cells[0]) if path.suffix.lower() == ".jsonl" else _csv_row(cells)


def _csv_row(cells: Sequence[str]) -> Row | str:
    if len(cells) == 2:
        return Row("", cells[0], cells[1])
    if len(cells) == 3 and is_use(cells[0]):
        return Row(cells[0], cells[1], cells[2])
    uses = "ML_USE is training, validation, test or unassigned"
    return f"not [ML_USE,]URI,label with one label, where {uses}: {', '.join(cells)}"


def _json_row(text: str) -> Row | str:
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
    return Row(use.strip(), uri.strip(), label.strip())
