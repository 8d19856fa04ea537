"""Implementation of `trainer bench`: training speed of a spec on this machine.

Prints three speeds in images/s, the bottleneck and advice, as lines or JSON. No run folder is created.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainer.cli.bootstrap import import_tensorflow, require_tensorflow, translate_memory_errors
from trainer.cli.choose import choose_settings
from trainer.cli.console import Console
from trainer.shutdown import GracefulShutdown
from trainer.spec import RunSpec, TrainSpec

if TYPE_CHECKING:
    from trainer.training.bench import Speeds

_LOG_SECONDS = 30.0
_LESS_MEMORY = "Lower train.global_batch_size, data.image_size or the size of the model."


def bench_command(
    spec: RunSpec, seconds: float, as_json: bool, cache_dir: Path, shutdown: GracefulShutdown
) -> None:
    """Measure for about `seconds`, and print the bottleneck of training."""
    require_tensorflow()
    with Console(_LOG_SECONDS, stderr=as_json) as console, translate_memory_errors(_LESS_MEMORY):
        console.banner()
        import_tensorflow()
        from trainer.data.dataset import format_contents
        from trainer.data.load import load_dataset
        from trainer.distributed.devices import find_cluster
        from trainer.training.bench import measure_speeds

        spec = choose_settings(spec, cache_dir, console)
        cluster = find_cluster(spec.train.deterministic, spec.train.devices)
        console.on_fact("devices", cluster.description)
        dataset = load_dataset(spec.data, cache_dir, console, lambda rejected: None)
        console.on_fact("data", format_contents(dataset))
        speeds = measure_speeds(spec, dataset, cluster, seconds, shutdown.is_requested)
        if as_json:
            texts = {"limit": speeds.limit, "sentence": speeds.sentence(), "advice": speeds.advice()}
            click.echo(json.dumps(asdict(speeds) | texts, indent=2))
            return
        console.on_fact("chosen", _chosen(speeds, spec.train))
        console.on_fact("compiled", f"in {speeds.compile_seconds:.1f} s")
        console.on_fact("step", f"{speeds.step:10,.0f} images/s alone")
        console.on_fact("pipeline", f"{speeds.pipeline:10,.0f} images/s alone")
        console.on_fact("training", f"{speeds.together:10,.0f} images/s, both together")
        console.on_fact("limit", speeds.sentence())
        console.on_fact("try", speeds.advice())


def _chosen(speeds: Speeds, train: TrainSpec) -> str:
    """Return the training settings in words; those not left at auto are marked."""
    parts = [
        (speeds.precision, train.precision),
        (f"{'' if speeds.xla else 'no '}XLA", train.xla),
        (f"{speeds.steps_per_call} step{'s' * (speeds.steps_per_call > 1)} a call", train.steps_per_call),
    ]
    texts = [text if value == "auto" else f"{text} (set)" for text, value in parts]
    return f"{', '.join(texts)}, batches of {speeds.global_batch_size}"
