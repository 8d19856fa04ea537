"""Marker of a published run, and the summary shown in a list of runs.

The marker `_SUCCESS` contains the SHA-256 of the manifest. In a bucket the summary is custom metadata of this
object, so a list of runs needs one request per run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.storage.store import Content

HELD_OUT = ("validation", "test")
"""Held-out splits in order of preference: a run is judged by the first one that exists, as in its report."""
_SUMMARY = "trainer-run"
"""Key of the custom metadata; its value is JSON."""


def marker_of(manifest: bytes) -> bytes:
    """Return the marker of a manifest: its SHA-256, 64 hex digits and a newline."""
    return f"{hashlib.sha256(manifest).hexdigest()}\n".encode()


def is_marker_of(marker: Content, manifest: Content) -> bool:
    """Return whether a marker (or the retired mark that replaces it) contains the digest of the manifest."""
    return marker.data.strip() == marker_of(manifest.data).strip()


def summary_labels(published: str, folder: Path) -> dict[str, str]:
    """Return the custom metadata of a run's marker; `folder` contains the run's files."""
    metrics, dataset = (_read(folder / name) for name in ("metrics.json", "dataset.json"))
    if not dataset:
        return {}
    summary = {"published": published, "data": dataset.get("digest"), "accuracy": held_out_accuracy(metrics)}
    return {_SUMMARY: json.dumps(summary)}


def read_summary(labels: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the summary in a marker's metadata (published, data, accuracy), or None."""
    return _parsed(labels.get(_SUMMARY, "").encode())


def held_out_accuracy(metrics: dict[str, Any]) -> Any:
    """Return the held-out accuracy from the content of a metrics.json, or None."""
    return next((metrics[key] for split in HELD_OUT if (key := f"{split}/accuracy") in metrics), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_bytes()) or {}
    except OSError:
        return {}


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
