"""What the command line says of a run, as a spec.

In: a file, a recipe, settings and single values. Out: a resolved spec, whose local paths mean the same in
every folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer import __version__
from trainer.cli.places import (
    absolute_source,
    local_path,
    require_apart,
    with_absolute_test_data,
    with_absolute_weights,
)
from trainer.data.progress import SilentProgress
from trainer.exits import DataError, UsageError
from trainer.spec import RunSpec, load_spec
from trainer.spec.schema import CHAMPION, LATEST, SCRATCH
from trainer.storage.store import require_uri

_DEMO, _AUTO = "demo", "auto"


def _local_spec(uri: str, cache_dir: Path) -> Path:
    try:
        return local_path(uri, cache_dir, SilentProgress())
    except DataError as error:  # it is no data
        raise UsageError(str(error)) from None


def _require_readable(sent: str) -> None:
    """Raise UsageError for a spec that was sent along and says nothing, or what only others understand."""
    if not sent.strip():
        raise UsageError(
            "The environment variable TRAINER_SPEC is there and empty; give it a spec, or unset it. "
            f"Received: {sent!r}"
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
    """Return the spec; the demo's if nothing says what to train on, and that of `auto` for data alone.

    `job_name` is for a run that has no name.

    `sent`: the YAML that a job brought along, in the place of a file.

    Raises UsageError, and what bringing a file from a bucket raises.
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
    # Written down as it is, a relative path would mean something else in another folder.
    data_spec = spec.data.model_copy(update={"source": absolute_source(spec.data.source)})
    require_apart(data_spec.source, spec.output)
    train_spec = spec.train
    if train_spec.start_from not in (SCRATCH, LATEST, CHAMPION):
        require_uri(train_spec.start_from)
        train_spec = train_spec.model_copy(update={"start_from": absolute_source(train_spec.start_from)})
    spec = spec.model_copy(update={"data": data_spec, "train": train_spec})
    return with_absolute_weights(with_absolute_test_data(spec))
