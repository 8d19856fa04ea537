"""The marker of a published run, and the summary that a list of runs shows.

In: the manifest, and the run's files. Out: the bytes of `_SUCCESS` (the manifest's digest), and a summary of
the run, which a bucket keeps as custom metadata of that object: so one request a run is enough to list them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.storage.store import Content

HELD_OUT = ("validation", "test")
"""The first that there is is what a run is judged by, as in its report."""
_SUMMARY = "trainer-run"
"""The name of the custom metadata; its value is JSON."""


def marker_of(manifest: bytes) -> bytes:
    """Return the marker of a manifest: its SHA-256, 64 hex digits and a newline."""
    return f"{hashlib.sha256(manifest).hexdigest()}\n".encode()


def is_marker_of(marker: Content, manifest: Content) -> bool:
    """Return whether a marker, or the mark in its place, holds the digest of the manifest."""
    return marker.data.strip() == marker_of(manifest.data).strip()


def summary_labels(published: str, folder: Path) -> dict[str, str]:
    """Return the custom metadata of a run's marker; `folder` has the run's files."""
    metrics, dataset = (_read(folder / name) for name in ("metrics.json", "dataset.json"))
    if not dataset:
        return {}
    summary = {"published": published, "data": dataset.get("digest"), "accuracy": held_out_accuracy(metrics)}
    return {_SUMMARY: json.dumps(summary)}


def read_summary(labels: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the summary in a marker's metadata: published, data, accuracy; None if there is none."""
    return _parsed(labels.get(_SUMMARY, "").encode())


def held_out_accuracy(metrics: dict[str, Any]) -> Any:
    """Return the accuracy that a run is judged by, as its metrics.json has it; None if it has none."""
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
