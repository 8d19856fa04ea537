"""Differences between two runs: spec, data and environment.

The functions return rows of (name, value of the first run, value of the second run), as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.compare.runs import Run
from trainer.sanitize import bare_address, shown_values
from trainer.spec.load import flat

Row = tuple[str, str, str]
_LOCATION_KEYS = ("output", "run_name")
"""Spec keys that are ignored: where a run is stored does not affect its result."""
_ENVIRONMENT = ("trainer_version", "git_commit", "python", "devices", "precision", "host", "system")
_NOTHING = "-"


def spec_differences(first: Run, second: Run) -> list[Row]:
    """Return the settings that differ, by key; addresses are compared without query and fragment."""
    specs = ({k: v for k, v in run.spec.items() if k not in _LOCATION_KEYS} for run in (first, second))
    return _differing(*(flat(shown_values(spec, bare_address)) for spec in specs))


def data_differences(first: Run, second: Run) -> list[Row]:
    """Return the differences in the data: the digest, and the images of each class in each split."""
    return _differing(*(_counts(run.dataset) for run in (first, second)))


def environment_differences(first: Run, second: Run) -> list[Row]:
    """Return the differences in machines and versions."""
    return _differing(*(_versions(run.environment) for run in (first, second)))


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    keys = dict.fromkeys([*first, *second])
    return [
        (key, _text(first.get(key)), _text(second.get(key)))
        for key in keys
        if first.get(key) != second.get(key)
    ]


def _counts(dataset: Mapping[str, Any]) -> dict[str, Any]:
    counts = {
        f"{split}/{name}": f"{images:,} images"
        for split, values in dataset.get("splits", {}).items()
        for name, images in values.get("classes", {}).items()
    }
    return {"digest": str(dataset.get("digest", ""))[:19] or None, **counts}


def _versions(environment: Mapping[str, Any]) -> dict[str, Any]:
    packages: Mapping[str, str] = environment.get("packages", {})
    return {name: environment.get(name) for name in _ENVIRONMENT} | dict(packages)


def _text(value: Any) -> str:
    if value is None:
        return _NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def all_differences(first: Run, second: Run) -> Iterator[tuple[str, list[Row]]]:
    """Yield (heading, rows) for each kind with differences; nothing if the spec of a run is unknown."""
    if not (first.spec and second.spec):
        return
    for heading, find in (
        ("spec", spec_differences),
        ("data", data_differences),
        ("environment", environment_differences),
    ):
        if rows := find(first, second):
            yield heading, rows
