"""The marker of a published run: the digest of its manifest, and what a list of runs shows of it.

In: the manifest, and the run's files. Out: the bytes of `_SUCCESS`, the digest on the first line and a JSON
object on the second, and back. So one small object is read of a run to list it; earlier versions wrote the
first line alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trainer.storage.store import Content

HELD_OUT = ("validation", "test")
"""The first that there is is what a run is judged by, as in its report."""


def marker_of(manifest: bytes, folder: Path) -> bytes:
    """Return the marker of a manifest; `folder` has the run's files."""
    metrics, dataset = (_read(folder / name) for name in ("metrics.json", "dataset.json"))
    digest = hashlib.sha256(manifest).hexdigest()
    if not dataset:
        return f"{digest}\n".encode()
    published = json.loads(manifest)["published"]
    about = {"published": published, "data": dataset.get("digest"), "accuracy": held_out_accuracy(metrics)}
    return f"{digest}\n{json.dumps(about)}\n".encode()


def is_marker_of(marker: Content, manifest: Content) -> bool:
    """Return whether a marker, or the mark in its place, holds the digest of the manifest."""
    digest = marker.data.decode("utf-8", "replace").strip().partition("\n")[0]
    return digest.strip() == hashlib.sha256(manifest.data).hexdigest()


def read_marker(marker: bytes) -> dict[str, Any] | None:
    """Return what a marker says of its run, None if it says nothing: published, data, accuracy."""
    return _parsed(marker.strip().partition(b"\n")[2])


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
