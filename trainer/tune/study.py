"""Records of a study: `study.json` and one JSON file per trial.

Each file is written atomically, on disk and in a bucket. The settings of a trial are recorded before training
and its result afterwards, so a restart needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainer.errors import UsageError
from trainer.storage.store import Store
from trainer.tune.parameters import Value

STUDY, BASE, SUMMARY, TABLE = "study.json", "base.yaml", "summary.json", "summary.txt"
_RECORDS = "trials/"
_FORMAT = 1

State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One combination of settings and its result."""

    number: int
    settings: Mapping[str, Value]
    state: State = "running"
    value: float | None = None
    """Optimized metric on the held-out images; None unless complete or pruned."""
    values: Mapping[int, float] = field(default_factory=dict)
    """The metric per epoch, counted from 1."""
    why: str = ""
    """Reason of a failure."""
    seconds: float | None = None
    """Training time."""
    data: str = ""
    """Digest of the data set."""

    @property
    def run_name(self) -> str:
        """Name of the run, below the study."""
        return f"trial-{self.number:03d}"

    @property
    def is_done(self) -> bool:
        """Whether the trial is complete, pruned or failed."""
        return self.state != "running"


class Records:
    """Trial records of one study; records of finished trials are cached."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._done: dict[int, Trial] = {}

    def read(self, number: int) -> Trial | None:
        """Return the trial with this number, None if it has not begun. Raises UsageError if it is damaged."""
        if number in self._done:
            return self._done[number]
        name = _record_name(number)
        content = self.store.read(name)
        if content is None:
            return None
        trial = _parse_trial(content.data, self.store.at(name))
        if trial.is_done:
            self._done[number] = trial
        return trial

    def write(self, trial: Trial) -> None:
        """Write the record of `trial`, replacing an earlier one."""
        self.store.write(
            _record_name(trial.number), json.dumps({"format": _FORMAT, **asdict(trial)}, indent=2).encode()
        )

    def all(self) -> list[Trial]:
        """Return all trials that have begun, sorted by number."""
        names = [entry.name for entry in self.store.entries(_RECORDS)]
        numbers = sorted(
            int(stem) for name in names if (stem := name[len(_RECORDS) : -len(".json")]).isdecimal()
        )
        return [trial for number in numbers if (trial := self.read(number)) is not None]

    def forget(self, trial: Trial, is_alone: bool) -> None:
        """Remove a trial that could not begin; also the study if it has no other trial and `is_alone`."""
        self.store.remove(_record_name(trial.number))
        if is_alone and not self.all():
            for name in (BASE, STUDY):
                self.store.remove(name)


def open_study(store: Store, description: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Return the content of the `study.json` in `store`, and create the study if it is new.

    `description`: the study as plain values; "start_from" may differ from the stored value. `base`: its spec
    as YAML. Raises UsageError if the folder contains another study or other files.
    """
    if store.read(STUDY) is None:
        # Another machine may be creating the study concurrently; study.json is always its first file.
        if store.entries() and store.read(STUDY) is None:
            raise UsageError(
                "The folder of the study contains other files.",
                "Choose another --run-name or --output.",
                received=store.uri,
            )
        store.create(STUDY, json.dumps({"format": _FORMAT, **description}, indent=2).encode())
        store.create(BASE, base.encode())
    content = store.read(STUDY)
    known = _parse_mapping(content.data if content else b"", store.at(STUDY))
    changed = [key for key, value in description.items() if key != "start_from" and known.get(key) != value]
    if changed:
        raise UsageError(
            f"The folder contains a study with another {' and '.join(changed)}.",
            "Choose another --run-name, or repeat the original command.",
            received=store.uri,
        )
    return known


def count_trials(store: Store) -> str:
    """Return a phrase with the number of finished and unfinished trials in `store`; empty without a study."""
    if store.find(STUDY) is None:
        return ""
    trials = Records(store).all()
    done = sum(trial.is_done for trial in trials)
    return f"{done} trials finished, {len(trials) - done} unfinished"


def _record_name(number: int) -> str:
    return f"{_RECORDS}{number:03d}.json"


def _parse_mapping(data: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(data)
        if values["format"] != _FORMAT:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(
            "A file of the study is damaged or of another version.",
            "Choose another --run-name.",
            received=where,
        ) from None
    return dict(values)


def _parse_trial(data: bytes, where: str) -> Trial:
    values = _parse_mapping(data, where)
    del values["format"]
    try:
        values["values"] = {int(epoch): float(value) for epoch, value in values["values"].items()}
        return Trial(**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            "The record of a trial is damaged or of another version.",
            "Choose another --run-name.",
            received=where,
        ) from None
