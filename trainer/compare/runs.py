"""Finished runs as they are compared.

In: the store of a run, or the text of a metrics.json alone. Out: a `Run` with whatever is known of it; each
file that was read is the one that was published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

from pydantic import ValidationError

from trainer.exits import DataError, UsageError
from trainer.manifest import FileRecord, read_manifest
from trainer.marker import HELD_OUT as HELD_OUT
from trainer.metrics import AnyPredictions
from trainer.prediction_files import parse_predictions
from trainer.publish import MANIFEST, RETIRED, is_finished
from trainer.run_folder import require_not_withdrawn
from trainer.run_folder.parsed import (
    problem_of,
    read_dataset_json,
    read_environment_json,
    read_history_jsonl,
    read_metrics_json,
    read_timings_json,
)
from trainer.spec.text import parse_mapping
from trainer.storage.store import Store

_Values = TypeVar("_Values")
_MOST_IMAGES = 10**9
_ROUNDING = 0.01
"""By how much a share, rounded by hand, and its counts may differ."""


@dataclass(frozen=True, eq=False)
class Run:
    """What is known of one run; of a metrics.json alone nothing but the metrics."""

    name: str
    uri: str
    metrics: Mapping[str, float]
    """By split/metric."""
    split: str
    """What it is judged by."""
    predictions: AnyPredictions | None = None
    """Of `split`."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    timings: Sequence[Mapping[str, Any]] = ()

    @property
    def correct(self) -> int:
        """Images of the split that the model got right."""
        return round(self.metrics[f"{self.split}/correct"])

    @property
    def count(self) -> int:
        """All images of the split."""
        return round(self.metrics[f"{self.split}/count"])

    @property
    def accuracy(self) -> float:
        """In 0..1."""
        return self.correct / self.count

    @property
    def seconds(self) -> float | None:
        """Of all epochs, validation and checkpoints too; None if it isn't known."""
        return sum(float(row["seconds"]) for row in self.timings) if self.timings else None

    @property
    def cost(self) -> float | None:
        """US dollars of its training, where its spec says what its machines cost; None if it doesn't."""
        price = (self.spec.get("publish") or {}).get("usd_per_hour")
        if price is None or self.seconds is None:
            return None
        return float(price) * self.seconds / 3600

    @property
    def images_per_second(self) -> float | None:
        """The median of its epochs; None if it isn't known."""
        rates = [float(row["images_per_second"]) for row in self.timings if row.get("images_per_second")]
        return median(rates) if rates else None


def read_run(run: Store, name: str) -> Run:
    """Return the finished run in `run`, called `name`.

    Raises UsageError for one that isn't there, isn't finished or is of another version, DataError for one
    that is not as it was published, with the file, and TemporaryError.
    """
    if run.read(MANIFEST) is None and run.find(RETIRED) is None:
        raise UsageError(
            f"There is no finished run; give the folder or the gs:// address of one. Received: {run.uri}"
        )
    require_not_withdrawn(run)
    if not is_finished(run):
        raise UsageError(
            "The run is not finished, or was changed after it was published; `trainer verify` tells which. "
            f"Received: {run.uri}"
        )
    listed = _listed(run)
    texts = {
        each: _read(run, listed, each)
        for each in ("spec.yaml", "environment.json", "dataset.json", "metrics.json", "history.jsonl",
                     "timings.json", "predictions.csv")
    }  # fmt: skip
    metrics = _read_as(read_metrics_json, run, "metrics.json", texts)
    split = judged_by(metrics, run.uri)
    answers = parse_predictions(texts["predictions.csv"].decode(), run.at("predictions.csv"))
    mine = next((each for each in answers if each.split == split), None)
    if mine is None or not {f"{split}/correct", f"{split}/count"} <= set(metrics):
        raise _is_of_another_version(run.uri, f"nothing of the {split} images in a file")
    return Run(
        name=name,
        uri=run.uri,
        metrics=metrics,
        split=split,
        predictions=mine,
        spec=parse_mapping(texts["spec.yaml"].decode(), run.at("spec.yaml")),
        environment=_read_as(read_environment_json, run, "environment.json", texts),
        dataset=_read_as(read_dataset_json, run, "dataset.json", texts),
        history=_read_as(read_history_jsonl, run, "history.jsonl", texts),
        timings=_read_as(read_timings_json, run, "timings.json", texts),
    )


def read_metrics(text: str, uri: str, name: str) -> Run:
    """Return a run of which only the metrics are known: `split/accuracy` and `split/count` suffice.

    Raises UsageError for what is no metrics.json.
    """
    try:
        metrics = read_metrics_json(text.removeprefix("\ufeff"))
    except ValidationError as error:
        raise UsageError(
            f"A metrics.json is one object of numbers, as a run leaves it: {problem_of(error)}. "
            f"Received: {uri}"
        ) from None
    split = judged_by(metrics, uri)
    count, accuracy = metrics.get(f"{split}/count", 0), metrics[f"{split}/accuracy"]
    right = metrics.get(f"{split}/correct", accuracy * count)
    is_share = 0 <= accuracy <= 1
    correct = round(right) if is_share else 0
    if not is_share or (count and abs(accuracy - correct / count) > _ROUNDING):
        raise UsageError(
            f"An accuracy is a share in 0..1, and that of the counts beside it. Received: {split}/accuracy "
            f"{accuracy:g}, {right:g} right of {count:g} in {uri}"
        )
    if not (1 <= count <= _MOST_IMAGES and count == round(count) and 0 <= correct <= count):
        raise UsageError(
            f"How sure a share is depends on how many images it is of: {split}/count tells that, from 1 up. "
            f"Received: {split}/count {count:g} and {correct} right in {uri}"
        )
    return Run(name, uri, metrics | {f"{split}/correct": correct}, split)


def judged_by(metrics: Mapping[str, float], uri: str) -> str:
    """Return the split that a run is judged by. Raises UsageError if its metrics are of none."""
    found = next((split for split in HELD_OUT if f"{split}/accuracy" in metrics), None)
    if found is None:
        raise UsageError(
            f"There is no accuracy on held-out images, as {HELD_OUT[0]}/accuracy. Received: {uri}"
        )
    return found


def _listed(run: Store) -> Mapping[str, FileRecord]:
    manifest = run.read(MANIFEST)
    try:
        return read_manifest(manifest.data if manifest else b"")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _is_of_another_version(run.uri, str(error)) from None


def _is_of_another_version(uri: str, what: str) -> UsageError:
    return UsageError(
        f"The run is of another version of this program, which reads its own. Received: {what} in {uri}"
    )


def _read(run: Store, listed: Mapping[str, FileRecord], name: str) -> bytes:
    found = run.read(name)
    if found is None or name not in listed:
        raise DataError(f"A file of the run is missing. Received: {run.at(name)}")
    if hashlib.sha256(found.data).hexdigest() != listed[name].sha256:
        raise DataError(f"A file of the run is not as it was published. Received: {run.at(name)}")
    return found.data


def _read_as(read: Callable[[bytes], _Values], run: Store, name: str, texts: Mapping[str, bytes]) -> _Values:
    """Return what a file holds. Raises UsageError for what this version didn't write."""
    try:
        return read(texts[name])
    except ValidationError as error:
        raise _is_of_another_version(run.at(name), problem_of(error)) from None
