"""Marker of a published run, and the summary shown in a list of runs.

The marker `_SUCCESS` contains the SHA-256 of the manifest. In a bucket the summary is custom metadata of this
object, so a list of runs needs one request per run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import UsageError
from trainer.spec.text import parse_mapping
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
    summary = summarize(lambda name: _read(folder / name))
    if not summary["data"]:
        return {}
    return {_SUMMARY: json.dumps({"published": published, **summary})}


def summarize(read: Callable[[str], bytes]) -> dict[str, Any]:
    """Return data, accuracy, gap, recipe, epochs and seconds of a run; None or "" where unknown.

    `read` returns the content of a file of the run, empty if it is missing.
    """
    metrics, dataset, timings = (
        _parsed(read(name)) or {} for name in ("metrics.json", "dataset.json", "timings.json")
    )
    accuracy, train_accuracy = held_out_accuracy(metrics), metrics.get("train/accuracy")
    has_gap = isinstance(accuracy, float | int) and isinstance(train_accuracy, float | int)
    return {
        "data": dataset.get("digest") or "",
        "accuracy": accuracy,
        "gap": train_accuracy - accuracy if has_gap else None,
        "recipe": _recipe(read("spec.yaml")),
        "epochs": read("history.jsonl").count(b"\n"),
        "seconds": timings.get("training_seconds"),
    }


def _recipe(spec: bytes) -> str:
    try:
        return str(parse_mapping(spec.decode("utf-8", "replace"), "spec.yaml").get("recipe") or "")
    except UsageError:
        return ""


def read_summary(labels: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the summary in a marker's metadata (`published` and the keys of `summarize`), or None.

    Versions before 0.2 wrote `published`, `data` and `accuracy` only.
    """
    return _parsed(labels.get(_SUMMARY, "").encode())


def held_out_accuracy(metrics: dict[str, Any]) -> Any:
    """Return the held-out accuracy from the content of a metrics.json, or None."""
    return next((metrics[key] for split in HELD_OUT if (key := f"{split}/accuracy") in metrics), None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
