"""Implementation of `trainer tune`: hyperparameter search with Optuna.

A study below the output has a run for each trial, a summary, and the command that trains with the best
settings. The same command resumes a study.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from trainer.cli.options import SpecCommand, search_options, tune_options
from trainer.errors import StoppedError, UsageError
from trainer.shutdown import GracefulShutdown

if TYPE_CHECKING:
    from trainer.spec import RunSpec
    from trainer.storage.store import Store
    from trainer.tune.search import Search

_SPEC_OF_JOB = "TRAINER_SPEC"
_DIGITS = 6
_HELD_OUT = "validation"
_WARMUP_SHARE = 4


@dataclass(frozen=True)
class Job:
    """Configuration that all trials of a study share."""

    base: RunSpec
    store: Store
    search: Search
    metric: str
    trials: int
    share: tuple[int, int]
    """(index, count) of the machines that share the study."""
    words: tuple[str, ...]
    """Additional options of `trainer train` for each trial."""
    command: tuple[str, ...]
    """Command that trains with the settings of the base spec."""


@click.command(cls=SpecCommand)
@tune_options
@search_options(is_required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def tune(
    trials: int, parameters: tuple[str, ...], metric: str, no_pruning: bool, as_json: bool, **given: Any
) -> None:
    """Search for the settings that are best on held-out images.

    Test images are never read. Each trial is a run of its own in OUTPUT/NAME. The same command continues a
    study that was stopped, and --trials with a larger number extends it.

    \b
    Examples:
      trainer tune --recipe demo --trials 20 --parameter optimizer.learning_rate=1e-4..1e-1:log
      trainer tune spec.yaml --trials 30 --parameter model.dropout=0..0.5:0.1 \\
        --parameter 'optimizer.name=sgd|adamw' --parameter train.global_batch_size=16..128:log
    """
    from trainer.cli.trials import finish, train_trial

    spec = _spec(given)
    stop = GracefulShutdown(spec.train.grace_seconds + 5)
    stop.install()
    job = _job(spec, given, trials, parameters, metric, is_pruning=not no_pruning)
    index, count = job.share
    try:
        for number in range(index, trials, count):
            if not train_trial(job, number):
                break
        finish(job, as_json)
    except StoppedError as error:
        raise StoppedError(f"{error} The same command continues the study {job.store.uri}.") from None


def search_words(spec: RunSpec, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of `trainer tune` for a job with the options `given`; empty for a single run.

    Raises UsageError for an invalid search, before anything is sent.
    """
    from trainer.tune.parameters import parse_parameters

    trials, texts = given["trials"], given["parameters"]
    if (trials is None) != (not texts):
        raise UsageError(
            "A search needs --trials N and at least one --parameter KEY=RANGE.",
            received=f"{'--parameter without --trials' if texts else '--trials without --parameter'}",
        )
    if trials is None:
        return ()
    for option in ("schedule", "is_jobset", "assert_accuracy_at_least"):
        if given.get(option):
            name = f"--{option.removeprefix('is_').replace('_', '-')}"
            raise UsageError(
                f"A search is no single run; leave {name} out.", received=f"{name} and --parameter"
            )
    if given["workers"] > trials:
        raise UsageError(
            "Each worker trains a part of the trials; lower --workers.",
            received=f"{given['workers']} workers for {trials} trials",
        )
    parse_parameters(texts, _base(spec))
    words = ["--trials", str(trials), "--metric", given["metric"], *["--no-pruning"] * given["no_pruning"]]
    return (*words, *(word for text in texts for word in ("--parameter", text)))


def _spec(given: dict[str, Any]) -> RunSpec:
    from trainer.cli.app import cache_folder, name_of_job
    from trainer.cli.config import given_spec

    overrides = {"data.source": given["data"], "output": given["output"], "run_name": given["run_name"]}
    sent = None if given["spec_path"] or given["recipe"] else os.environ.get(_SPEC_OF_JOB)
    return given_spec(
        given["spec_path"], given["recipe"], given["settings"], overrides, name_of_job(), cache_folder(), sent
    )


def _base(spec: RunSpec) -> RunSpec:
    """Return the base spec of all trials: without champion challenge and without test images."""
    from trainer.cli.several import unreleased

    held_out = _HELD_OUT if spec.data.held_out == "auto" else spec.data.held_out
    return unreleased(spec).model_copy(update={"data": spec.data.model_copy(update={"held_out": held_out})})


def _require_metric(metric: str, spec: RunSpec) -> None:
    if metric == "mean_average_precision" and spec.data.labels != "multi":
        raise UsageError(
            "--metric mean_average_precision is of images with several labels, data.labels=multi.",
            received=f"data.labels={spec.data.labels}",
        )


def _job(
    spec: RunSpec, given: dict[str, Any], trials: int, texts: tuple[str, ...], metric: str, is_pruning: bool
) -> Job:
    from trainer.cli.paths import program
    from trainer.cli.several import find_common_start, with_start
    from trainer.data.fetch import require_source
    from trainer.distributed import read_share
    from trainer.spec import dump_shown_spec, spec_digest
    from trainer.storage.store import open_store
    from trainer.tune.parameters import parse_parameters
    from trainer.tune.search import METRICS, Search, require_optuna
    from trainer.tune.study import BASE, open_study

    require_optuna()
    require_source(spec.data.source)
    _require_metric(metric, spec)
    base = _base(spec)
    parameters = parse_parameters(texts, base)
    about = {
        "metric": f"{_HELD_OUT}/{METRICS[metric][1]}",
        "parameters": {each.key: each.text for each in parameters},
        "spec": spec_digest(base.model_copy(update={"run_name": None})),
        "start_from": find_common_start(base, "their settings"),
    }
    share = read_share(os.environ)
    name = spec.run_name or f"tune-{spec.recipe or 'run'}-{_identity(about)}"
    store = open_store(f"{spec.output.rstrip('/')}/{name}")
    shown = dump_shown_spec(spec.model_copy(update={"run_name": None}))
    known = open_study(store, about, shown)
    base = with_start(base, str(known["start_from"]))
    search = Search(parameters, spec.seed, metric != "loss", spec.train.epochs // _WARMUP_SHARE, is_pruning)
    words = ("--require-accelerator", given["require_accelerator"]) if given["require_accelerator"] else ()
    own = _own_words(given)
    # With the default data.held_out the final model can train on all training images.
    whole = ["--set", "data.held_out=auto"] if spec.data.held_out != "auto" else []
    return Job(
        base, store, search, metric, trials, share, words,
        (program(), "train", *(own or [store.at(BASE)]), *whole),
    )  # fmt: skip


def _own_words(given: dict[str, Any]) -> list[str]:
    """Return the options of this command that describe a spec; empty for a spec from TRAINER_SPEC."""
    from trainer.sanitize import shown_address

    options = {"--recipe": given["recipe"], "--data": given["data"], "--output": given["output"]}
    words = [given["spec_path"]] if given["spec_path"] else []
    for option, value in options.items():
        words += [option, shown_address(value)] if value else []
    for setting in given["settings"]:
        words += ["--set", shown_address(setting)]
    is_sent = _SPEC_OF_JOB in os.environ and not (given["spec_path"] or given["recipe"])
    return [] if is_sent else words


def _identity(about: dict[str, Any]) -> str:
    """Return a hash prefix that identifies the study, independent of the number of its trials."""
    import hashlib
    import json

    text = json.dumps({key: value for key, value in about.items() if key != "start_from"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
