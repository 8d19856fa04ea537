"""Parsers for the JSON files of a run that other runs are compared with.

They take the bytes of a file, or a run, and return validated plain values. Content that does not match the
schema of this version raises pydantic's ValidationError.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, TypeAdapter, ValidationError

from trainer.runs.files import IMAGES
from trainer.storage.store import Store

_LONE_SURROGATES = re.compile(rb"(?<!\\)((?:\\\\)*)\\ud[89a-f][0-9a-f]{2}")
"""JSON escapes of lone surrogates (undecodable bytes of a file name), which pydantic rejects."""
_METRICS = TypeAdapter(dict[str, FiniteFloat | None])
_HISTORY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class _File(BaseModel):
    model_config = ConfigDict(extra="allow")

    @classmethod
    def values(cls, data: bytes) -> dict[str, Any]:
        return cls.model_validate_json(_LONE_SURROGATES.sub(rb"\1?", data)).model_dump(exclude_unset=True)


class _Environment(_File):
    packages: dict[str, str] = {}
    trainer_version: str = ""


class _Split(_File):
    images: int = 0
    classes: dict[str, int] = {}
    digest: str | None = None


class _Rejected(_File):
    count: int = 0


class _Dataset(_File):
    digest: str = ""
    splits: dict[str, _Split] = {}
    rejected: _Rejected = _Rejected()


class _Images(_File):
    images: int
    distinct: int | None = None
    contents: list[str] = []
    trained: list[str] = []
    trained_distinct: int | None = None
    measures: dict[str, list[FiniteFloat]] = {}


class _Epoch(_File):
    seconds: FiniteFloat
    images_per_second: FiniteFloat | None = None


class _Timings(_File):
    epochs: list[_Epoch]


def read_metrics_json(data: bytes | str) -> dict[str, float]:
    """Return the metrics as {"split/metric": value}, without those that are null."""
    return {name: value for name, value in _METRICS.validate_json(data).items() if value is not None}


def read_environment_json(data: bytes) -> dict[str, Any]:
    """Return the parsed content of an environment.json."""
    return _Environment.values(data)


def read_dataset_json(data: bytes) -> dict[str, Any]:
    """Return the parsed content of a dataset.json."""
    return _Dataset.values(data)


def read_images_json(data: bytes) -> dict[str, Any]:
    """Return the parsed content of an images.json."""
    return _Images.values(data)


def read_published_images(run: Store) -> dict[str, Any]:
    """Return the images.json of a run; empty if it is missing or unreadable."""
    content = run.read(IMAGES)
    try:
        return read_images_json(content.data) if content else {}
    except ValidationError:
        return {}


def read_timings_json(data: bytes) -> list[dict[str, Any]]:
    """Return the epochs of a timings.json."""
    epochs: list[dict[str, Any]] = _Timings.values(data)["epochs"]
    return epochs


def read_history_jsonl(data: bytes) -> list[dict[str, Any]]:
    """Return the rows of a history.jsonl."""
    return [_HISTORY.validate_json(line) for line in data.splitlines()]


def problem_of(error: ValidationError) -> str:
    """Return a message with the first error and its location in the file."""
    first = error.errors(include_url=False, include_input=False)[0]
    location = ".".join(map(str, first["loc"]))
    return f"{location + ': ' if location else ''}{first['msg'][:100]}"
