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


def _local_spec(uri: str, cache_dir: Path) -> Path:
    try:
        return local_path(uri, cache_dir, SilentProgress())
    except DataError as error:  # a spec is not data
        raise UsageError(str(error)) from None


def _require_readable(sent: str) -> None:
    """Raise UsageError if the spec in TRAINER_SPEC is empty or invalid in this version."""
    if not sent.strip():
        raise UsageError(
            "The environment variable TRAINER_SPEC is there and empty; give it a spec, or unset it.",
            received=f"{sent!r}",
        )
    try:
        load_spec(text=sent)
    except UsageError as error:
        raise UsageError(
            f"{error} The job brought this spec along in TRAINER_SPEC, and this is trainer {__version__}: if "
            "another version sent it, build the image anew."
        ) from None


def given_spec(
    spec_path: str | None,
    recipe: str | None,
    settings: Sequence[str],
    overrides: Mapping[str, str | None],
    job_name: str | None,
    cache_dir: Path,
    sent: str | None = None,
) -> RunSpec:
    """Return the resolved spec; the default recipe is `auto` with data, and `demo` without.

    `job_name` is the run name for a spec without one.

    `sent` is the YAML spec of a submitted job, in place of a file.

    Raises UsageError, and the errors of downloading a file from a bucket.
    """
    if sent is None and spec_path is None and recipe is None and overrides.get("data.source") is None:
        recipe = _DEMO
    elif sent is None and spec_path is None and recipe is None:
        recipe = _AUTO
    path = _local_spec(spec_path, cache_dir) if spec_path is not None else None
    if sent is not None:
        _require_readable(sent)
    spec = load_spec(path, recipe, settings, overrides, sent)
    if spec.run_name is None and job_name is not None:
        try:
            spec = load_spec(path, recipe, settings, {**overrides, "run_name": job_name}, sent)
        except UsageError as error:
            raise UsageError(f"{error} The environment gives this name; --run-name gives another.") from None
    # A relative path in the saved spec would depend on the working directory.
    data_spec = spec.data.model_copy(update={"source": absolute_source(spec.data.source)})
    require_apart(data_spec.source, spec.output)
    train_spec = spec.train
    if train_spec.start_from not in (SCRATCH, LATEST, CHAMPION):
        require_uri(train_spec.start_from)
        train_spec = train_spec.model_copy(update={"start_from": absolute_source(train_spec.start_from)})
    spec = spec.model_copy(update={"data": data_spec, "train": train_spec})
    return with_absolute_weights(with_absolute_test_data(spec))
