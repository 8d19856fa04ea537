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

from trainer.cli.options import SpecCommand, examples, search_options, tune_options
from trainer.errors import StoppedError, UsageError
from trainer.shutdown import GracefulShutdown

if TYPE_CHECKING:
    from trainer.spec import RunSpec
    from trainer.storage.store import Store
    from trainer.tune.search import Search

_DIGITS = 6
_HELD_OUT = "validation"
_WARMUP_SHARE = 4


@dataclass(frozen=True)
class TrialJob:
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


@click.command(
    cls=SpecCommand,
    epilog=examples(
        "trainer tune --recipe demo --trials 9 --parameter model.dropout=0..0.5:0.1",
        "trainer tune my.yaml --trials 20 --parameter 'optimizer.name=sgd|adamw'",
    ),
)
@tune_options
@search_options(is_required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def tune(
    trials: int, parameters: tuple[str, ...], metric: str, no_pruning: bool, as_json: bool, **options: Any
) -> None:
    """Search for the settings that are best on held-out images.

    Test images are never read. Each trial is a run in OUTPUT/NAME. Run the same command to resume a
    study that was stopped; a larger --trials extends it.
    """
    from trainer.cli.trials import finish, train_trial

    spec = _load_spec(options)
    shutdown = GracefulShutdown(spec.train.grace_seconds + 5)
    shutdown.install()
    job = _job(spec, options, trials, parameters, metric, is_pruning=not no_pruning)
    index, count = job.share
    try:
        for number in range(index, trials, count):
            if not train_trial(job, number):
                break
        finish(job, as_json)
    except StoppedError as error:
        remedy = f"Run the same command to resume the study {job.store.uri}."
        raise StoppedError(str(error), remedy) from None


def search_words(spec: RunSpec, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of `trainer tune` for a job with the given `options`; empty for a single run.

    Raises UsageError for an invalid search, before anything is sent.
    """
    from trainer.tune.parameters import parse_parameters

    trials, texts = options["trials"], options["parameters"]
    if (trials is None) != (not texts):
        raise UsageError(
            "A search needs both the number of trials and a parameter.",
            "Set --trials N and at least one --parameter KEY=RANGE.",
            received=f"{'--parameter without --trials' if texts else '--trials without --parameter'}",
        )
    if trials is None:
        return ()
    for name in ("schedule", "is_jobset", "assert_accuracy_at_least"):
        if options.get(name):
            flag = f"--{name.removeprefix('is_').replace('_', '-')}"
            raise UsageError(
                f"{flag} does not apply to a search.", f"Remove {flag}.", received=f"{flag} and --parameter"
            )
    if options["workers"] > trials:
        raise UsageError(
            "There are more workers than trials, and each worker trains a part of the trials.",
            "Lower --workers.",
            received=f"{options['workers']} workers for {trials} trials",
        )
    parse_parameters(texts, _base(spec))
    words = [
        "--trials",
        str(trials),
        "--metric",
        options["metric"],
        *["--no-pruning"] * options["no_pruning"],
    ]
    return (*words, *(word for text in texts for word in ("--parameter", text)))


def _load_spec(options: dict[str, Any]) -> RunSpec:
    from trainer.cli.config import load_run_spec
    from trainer.cli.environment import cache_folder, job_name, job_spec

    path, recipe = options["spec_path"], options["recipe"]
    overrides = {"data.source": options["data"], "output": options["output"], "run_name": options["run_name"]}
    sent_spec = job_spec(path, recipe)
    return load_run_spec(path, recipe, options["settings"], overrides, job_name(), cache_folder(), sent_spec)


def _base(spec: RunSpec) -> RunSpec:
    """Return the base spec of all trials: without champion challenge and without test images."""
    from trainer.cli.repeat import unreleased

    held_out = _HELD_OUT if spec.data.held_out == "auto" else spec.data.held_out
    return unreleased(spec).model_copy(update={"data": spec.data.model_copy(update={"held_out": held_out})})


def _require_metric(metric: str, spec: RunSpec) -> None:
    if metric == "mean_average_precision" and spec.data.labels != "multi":
        raise UsageError(
            "--metric mean_average_precision requires images with several labels.",
            "Set data.labels=multi, or choose another --metric.",
            received=f"data.labels={spec.data.labels}",
        )


def _job(
    spec: RunSpec, options: dict[str, Any], trials: int, texts: tuple[str, ...], metric: str, is_pruning: bool
) -> TrialJob:
    from trainer.cli.paths import program
    from trainer.cli.repeat import find_common_start, with_start
    from trainer.data.fetch import require_source
    from trainer.distributed import read_share
    from trainer.spec import dump_shown_spec, spec_digest
    from trainer.storage import open_store
    from trainer.tune.parameters import parse_parameters
    from trainer.tune.search import METRICS, Search, require_optuna
    from trainer.tune.study import BASE, open_study

    require_optuna()
    require_source(spec.data.source)
    _require_metric(metric, spec)
    base = _base(spec)
    parameters = parse_parameters(texts, base)
    identity = {
        "metric": f"{_HELD_OUT}/{METRICS[metric][1]}",
        "parameters": {parameter.key: parameter.text for parameter in parameters},
        "spec": spec_digest(base.model_copy(update={"run_name": None})),
        "start_from": find_common_start(base, "their settings"),
    }
    share = read_share(os.environ)
    name = spec.run_name or f"tune-{spec.recipe or 'run'}-{_digest_of(identity)}"
    store = open_store(f"{spec.output.rstrip('/')}/{name}")
    shown = dump_shown_spec(spec.model_copy(update={"run_name": None}))
    study = open_study(store, identity, shown)
    base = with_start(base, str(study["start_from"]))
    search = Search(parameters, spec.seed, metric != "loss", spec.train.epochs // _WARMUP_SHARE, is_pruning)
    accelerator = options["require_accelerator"]
    words = ("--require-accelerator", accelerator) if accelerator else ()
    arguments = _spec_arguments(options)
    # With the default data.held_out the final model can train on all training images.
    held_out = ["--set", "data.held_out=auto"] if spec.data.held_out != "auto" else []
    return TrialJob(
        base, store, search, metric, trials, share, words,
        (program(), "train", *(arguments or [store.at(BASE)]), *held_out),
    )  # fmt: skip


def _spec_arguments(options: dict[str, Any]) -> list[str]:
    """Return the options of this command that describe a spec; empty for a spec from TRAINER_SPEC."""
    from trainer.cli.environment import job_spec
    from trainer.sanitize import shown_address

    flags = {"--recipe": options["recipe"], "--data": options["data"], "--output": options["output"]}
    words = [options["spec_path"]] if options["spec_path"] else []
    for option, value in flags.items():
        words += [option, shown_address(value)] if value else []
    for setting in options["settings"]:
        words += ["--set", shown_address(setting)]
    return [] if job_spec(options["spec_path"], options["recipe"]) is not None else words


def _digest_of(identity: dict[str, Any]) -> str:
    """Return a hash prefix that identifies the study, independent of the number of its trials."""
    import hashlib
    import json

    text = json.dumps({key: value for key, value in identity.items() if key != "start_from"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
