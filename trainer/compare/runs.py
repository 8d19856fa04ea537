"""Finished runs as inputs of a comparison, and the differences of their settings.

`read_run` reads a published run and verifies each file by the manifest. `read_metrics` reads a metrics.json
alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

from pydantic import ValidationError

from trainer.errors import DataError, UsageError
from trainer.evaluate.metrics import AnyPredictions
from trainer.evaluate.prediction_files import parse_predictions
from trainer.runs import require_not_withdrawn
from trainer.runs.artifacts import (
    problem_of,
    read_dataset_json,
    read_environment_json,
    read_history_jsonl,
    read_metrics_json,
    read_timings_json,
)
from trainer.runs.manifest import FileRecord, read_manifest
from trainer.runs.marker import HELD_OUT as HELD_OUT
from trainer.runs.publish import MANIFEST, RETIRED, is_finished
from trainer.sanitize import bare_address, shown_values
from trainer.spec.load import flatten
from trainer.spec.text import parse_mapping
from trainer.storage.store import Store

_Values = TypeVar("_Values")
_MAX_IMAGES = 10**9
_RESTORE = "Restore the file, or train again."
_ROUNDING = 0.01
"""Maximum difference between a share that was rounded by hand and its counts."""


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run; if read from a metrics.json alone, only the metrics are known."""

    name: str
    uri: str
    metrics: Mapping[str, float]
    """By split/metric."""
    split: str
    """Split that the run is judged by."""
    predictions: AnyPredictions | None = None
    """Predictions for `split`."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    timings: Sequence[Mapping[str, Any]] = ()

    @property
    def correct(self) -> int:
        """Number of correctly predicted images in the split."""
        return round(self.metrics[f"{self.split}/correct"])

    @property
    def count(self) -> int:
        """Number of images in the split."""
        return round(self.metrics[f"{self.split}/count"])

    @property
    def accuracy(self) -> float:
        """Accuracy, in 0..1."""
        return self.correct / self.count

    @property
    def seconds(self) -> float | None:
        """Duration of all epochs, including validation and checkpoints; None if unknown."""
        return sum(float(row["seconds"]) for row in self.timings) if self.timings else None

    @property
    def cost(self) -> float | None:
        """Training cost in US dollars by the hourly price in the spec; None without a price or a duration."""
        price = (self.spec.get("publish") or {}).get("usd_per_hour")
        if price is None or self.seconds is None:
            return None
        return float(price) * self.seconds / 3600

    @property
    def images_per_second(self) -> float | None:
        """Median over the epochs; None if unknown."""
        rates = [float(row["images_per_second"]) for row in self.timings if row.get("images_per_second")]
        return median(rates) if rates else None


def read_run(run: Store, name: str) -> Run:
    """Return the finished run in the store `run`, with the display name `name`.

    Raises UsageError for a run that does not exist, is not finished, was withdrawn or is of another version,
    DataError with the file for a run that differs from what was published, and TemporaryError.
    """
    _require_finished(run)
    listed = _listed(run)
    texts = {
        file: _read_verified(run, listed, file)
        for file in ("spec.yaml", "environment.json", "dataset.json", "metrics.json", "history.jsonl",
                     "timings.json", "predictions.csv")
    }  # fmt: skip
    metrics = _read_as(read_metrics_json, run, "metrics.json", texts)
    split = judged_by(metrics, run.uri)
    splits = parse_predictions(texts["predictions.csv"].decode(), run.at("predictions.csv"))
    predictions = next((part for part in splits if part.split == split), None)
    if predictions is None or not {f"{split}/correct", f"{split}/count"} <= set(metrics):
        raise _unsupported_version(run.uri, f"no {split} images in predictions.csv or metrics.json")
    return Run(
        name=name,
        uri=run.uri,
        metrics=metrics,
        split=split,
        predictions=predictions,
        spec=parse_mapping(texts["spec.yaml"].decode(), run.at("spec.yaml")),
        environment=_read_as(read_environment_json, run, "environment.json", texts),
        dataset=_read_as(read_dataset_json, run, "dataset.json", texts),
        history=_read_as(read_history_jsonl, run, "history.jsonl", texts),
        timings=_read_as(read_timings_json, run, "timings.json", texts),
    )


def _require_finished(run: Store) -> None:
    if run.read(MANIFEST) is None and run.find(RETIRED) is None:
        raise UsageError(
            "There is no finished run.",
            "Give the folder or gs:// URI of a finished run, or a metrics.json.",
            received=run.uri,
        )
    require_not_withdrawn(run)
    if not is_finished(run):
        raise UsageError(
            "The run is not finished, or was changed after it was published.",
            "Run `trainer verify RUN` to find out.",
            received=run.uri,
        )


def read_metrics(text: str, uri: str, name: str) -> Run:
    """Return a run with metrics only; `split/accuracy` and `split/count` suffice.

    Raises UsageError if `text` is not a metrics.json.
    """
    try:
        metrics = read_metrics_json(text.removeprefix("\ufeff"))
    except ValidationError as error:
        raise UsageError(
            f"The file is not a metrics.json: {problem_of(error)}.",
            "Pass the metrics.json of a run, a JSON object with numeric values.",
            received=uri,
        ) from None
    split = judged_by(metrics, uri)
    count, accuracy = metrics.get(f"{split}/count", 0), metrics[f"{split}/accuracy"]
    right = metrics.get(f"{split}/correct", accuracy * count)
    is_share = 0 <= accuracy <= 1
    correct = round(right) if is_share else 0
    if not is_share or (count and abs(accuracy - correct / count) > _ROUNDING):
        raise UsageError(
            f"{split}/accuracy must be between 0 and 1, and match {split}/correct and {split}/count.",
            "Correct the numbers.",
            received=f"{split}/accuracy {accuracy:g}, {right:g} right of {count:g} in {uri}",
        )
    if not (1 <= count <= _MAX_IMAGES and count == round(count) and 0 <= correct <= count):
        raise UsageError(
            f"{split}/count, the number of images, must be a positive integer.",
            f"Add {split}/count, on which the interval of the accuracy depends.",
            received=f"{split}/count {count:g} and {correct} right in {uri}",
        )
    return Run(name, uri, metrics | {f"{split}/correct": correct}, split)


def judged_by(metrics: Mapping[str, float], uri: str) -> str:
    """Return the split that a run is judged by. Raises UsageError without held-out accuracy."""
    split = next((split for split in HELD_OUT if f"{split}/accuracy" in metrics), None)
    if split is None:
        raise UsageError(
            "The metrics have no accuracy on held-out images.",
            f"Add {' or '.join(f'{name}/accuracy' for name in HELD_OUT)}.",
            received=uri,
        )
    return split


def _listed(run: Store) -> Mapping[str, FileRecord]:
    manifest = run.read(MANIFEST)
    try:
        return read_manifest(manifest.data if manifest else b"")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unsupported_version(run.uri, str(error)) from None


def _unsupported_version(uri: str, problem: str) -> UsageError:
    return UsageError(
        "The run was written by another version of this program.",
        "Use that version to compare it.",
        received=f"{problem} in {uri}",
    )


def _read_verified(run: Store, listed: Mapping[str, FileRecord], name: str) -> bytes:
    """Return a file of the run after comparing it with the manifest. Raises DataError."""
    content = run.read(name)
    if content is None or name not in listed:
        raise DataError(
            "A file of the run is missing or not in the manifest.", _RESTORE, received=run.at(name)
        )
    if hashlib.sha256(content.data).hexdigest() != listed[name].sha256:
        raise DataError("A file of the run differs from the published one.", _RESTORE, received=run.at(name))
    return content.data


def _read_as(read: Callable[[bytes], _Values], run: Store, name: str, texts: Mapping[str, bytes]) -> _Values:
    """Return the parsed content of a file. Raises UsageError if this version didn't write it."""
    try:
        return read(texts[name])
    except ValidationError as error:
        raise _unsupported_version(run.at(name), problem_of(error)) from None


Row = tuple[str, str, str]
_LOCATION_KEYS = ("output", "run_name")
"""Spec keys that are ignored: where a run is stored does not affect its result."""
_ENVIRONMENT = ("trainer_version", "git_commit", "python", "devices", "precision", "host", "system")
_NOTHING = "-"


def spec_differences(first: Run, second: Run) -> list[Row]:
    """Return the settings that differ, by key; addresses are compared without query and fragment."""
    specs = ({k: v for k, v in run.spec.items() if k not in _LOCATION_KEYS} for run in (first, second))
    return _differing(*(flatten(shown_values(spec, bare_address)) for spec in specs))


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
