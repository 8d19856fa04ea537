"""Comparison of a new run with the newest finished run.

The newest finished run is either identical (same spec, same data) or trained on earlier data of the same
source, against which drift is measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from trainer.errors import UsageError
from trainer.report.drift import EarlierRun
from trainer.runs.artifacts import read_dataset_json, read_images_json
from trainer.runs.files import IMAGES, weights_in
from trainer.runs.publish import latest_run
from trainer.sanitize import bare_address
from trainer.spec import RunSpec, parse_spec, spec_digest
from trainer.storage.store import Store


def find_same_run(output: Store, spec: RunSpec, data_digest: str, weights_sha256: str = "") -> str:
    """Return the name of the newest finished run if its spec and data are equal; else an empty string.

    data_digest: SHA-256 of the data set, 64 hex digits; `weights_sha256` that of a pretrained weights file.
    Raises TemporaryError.
    """
    name = latest_run(output)
    if name is None:
        return ""
    run = output.below(name)
    dataset, spec_file = run.read("dataset.json"), run.read("spec.yaml")
    if dataset is None or spec_file is None:
        return ""
    try:
        is_same_data = json.loads(dataset.data)["digest"] == f"sha256:{data_digest}"
        before = parse_spec(spec_file.data.decode(), run.at("spec.yaml"))
    except (ValueError, KeyError, TypeError, RecursionError, UsageError):
        return ""  # written by another version of this program
    # The digest decides, not the path: equal weights may have moved, and a path may have new content.
    digests = (spec_digest(before, read_weights_sha256(run)), spec_digest(spec, weights_sha256))
    return name if is_same_data and digests[0] == digests[1] else ""


def read_weights_sha256(run: Store) -> str:
    """Return the SHA-256 of the weights file that `run` started from; empty without one."""
    return (read_weights(run) or {}).get("sha256") or ""


def read_weights(run: Store) -> dict[str, str | None] | None:
    """Return sha256, origin and licence of the weights file that `run` started from, or None."""
    environment = run.read("environment.json")
    try:
        return weights_in(json.loads(environment.data)) if environment else None
    except (ValueError, RecursionError):
        return None


def find_earlier(output: Store, spec: RunSpec, data_digest: str) -> EarlierRun | None:
    """Return the data statistics of the newest finished run, if it has the same source but other data.

    Files that are unreadable, for example of another version of this program, count as missing. Raises
    TemporaryError.
    """
    name = latest_run(output)
    if name is None:
        return None
    run = output.below(name)
    dataset = _read_parsed(run, "dataset.json", read_dataset_json)
    spec_file = run.read("spec.yaml")
    try:
        before = parse_spec(spec_file.data.decode(), run.at("spec.yaml")).data if spec_file else None
    except (ValueError, UsageError):
        return None
    if (
        not dataset
        or before is None
        or bare_address(before.source) != bare_address(spec.data.source)
        or dataset.get("digest") == f"sha256:{data_digest}"
    ):
        return None
    has_same_format = before.pixel_format == spec.data.pixel_format
    return EarlierRun(name, dataset, _read_parsed(run, IMAGES, read_images_json), has_same_format)


def _read_parsed(run: Store, name: str, read: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """Return the parsed file `name`; empty if it is missing or does not match the schema of this version."""
    content = run.read(name)
    try:
        return read(content.data) if content else {}
    except ValidationError:
        return {}
