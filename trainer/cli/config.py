"""Resolution of the spec from the command line: file, recipe, settings and single options.

Local paths of inputs are absolute in the resolved spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer import __version__
from trainer.cli.paths import (
    absolute_source,
    local_path,
    require_apart,
    with_absolute_test_data,
    with_absolute_weights,
)
from trainer.data.progress import SilentProgress
from trainer.errors import DataError, UsageError
from trainer.spec import RunSpec, load_spec
from trainer.spec.schema import CHAMPION, LATEST, SCRATCH
from trainer.storage.store import require_uri

_DEMO, _AUTO = "demo", "auto"


def load_run_spec(
    spec_path: str | None,
    recipe: str | None,
    settings: Sequence[str],
    overrides: Mapping[str, str | None],
    job_name: str | None,
    cache_dir: Path,
    sent_spec: str | None = None,
) -> RunSpec:
    """Return the resolved spec; the default recipe is `auto` with data, and `demo` without.

    `job_name` is the run name for a spec without one. `sent_spec` is the YAML spec of a submitted job, in
    place of a file. Raises UsageError, and the errors of downloading a file from a bucket.
    """
    if sent_spec is None and spec_path is None and recipe is None:
        recipe = _DEMO if overrides.get("data.source") is None else _AUTO
    path = _local_spec(spec_path, cache_dir) if spec_path is not None else None
    if path is not None and path.is_file() and not path.stat().st_size:
        raise UsageError("The spec is empty.", "Write at least one setting, or use --recipe.", received=path)
    if sent_spec is not None:
        _require_valid(sent_spec)
    spec = load_spec(path, recipe, settings, overrides, sent_spec)
    if spec.run_name is None and job_name is not None:
        try:
            spec = load_spec(path, recipe, settings, {**overrides, "run_name": job_name}, sent_spec)
        except UsageError as error:
            remedy = "The name comes from the environment. Set another one with --run-name."
            raise UsageError(str(error), remedy) from None
    return _with_absolute_paths(spec)


def _local_spec(uri: str, cache_dir: Path) -> Path:
    try:
        return local_path(uri, cache_dir, SilentProgress())
    except DataError as error:  # a spec is not data
        raise UsageError(error.problem, error.remedy, error.received) from None


def _require_valid(sent_spec: str) -> None:
    """Raise UsageError if the spec in TRAINER_SPEC is empty or invalid in this version."""
    if not sent_spec.strip():
        raise UsageError(
            "The environment variable TRAINER_SPEC is empty.",
            "Set it to a spec, or unset it.",
            received=f"{sent_spec!r}",
        )
    try:
        load_spec(text=sent_spec)
    except UsageError as error:
        raise UsageError(
            str(error),
            f"The job has this spec in TRAINER_SPEC, and its image contains trainer {__version__}. If "
            "another version submitted the job, rebuild the image.",
        ) from None


def _with_absolute_paths(spec: RunSpec) -> RunSpec:
    """Return the spec with absolute local paths: a relative one would depend on the working directory."""
    data_spec = spec.data.model_copy(update={"source": absolute_source(spec.data.source)})
    require_apart(data_spec.source, spec.output)
    train_spec = spec.train
    if train_spec.start_from not in (SCRATCH, LATEST, CHAMPION):
        require_uri(train_spec.start_from)
        train_spec = train_spec.model_copy(update={"start_from": absolute_source(train_spec.start_from)})
    spec = spec.model_copy(update={"data": data_spec, "train": train_spec})
    return with_absolute_weights(with_absolute_test_data(spec))
