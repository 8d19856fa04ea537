"""Implementation of `trainer train` and `trainer bench`: a run with console output and gates."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainer import __version__
from trainer.cli.bootstrap import import_tensorflow, require_tensorflow, translate_memory_errors, write_stderr
from trainer.cli.config import choose_settings
from trainer.cli.console import Console, LogFormat
from trainer.cli.gates import run_gates
from trainer.cli.job import Job, print_finished, run_chief, run_worker
from trainer.distributed import ProcessGroup, ProcessInfo, join_process_group
from trainer.errors import TrainerError
from trainer.runs import find_finished_run
from trainer.sanitize import without_secrets
from trainer.shutdown import GracefulShutdown
from trainer.spec import RunSpec, TrainSpec, setting_digests

if TYPE_CHECKING:
    from trainer.training.bench import Speeds

_END_SECONDS = 8.0


def train_command(
    spec: RunSpec,
    cache_dir: Path,
    fresh: bool,
    shutdown: GracefulShutdown,
    process: ProcessInfo,
    min_accuracy: float | None = None,
    log_format: LogFormat | None = None,
) -> str:
    """Train the run of `spec` until it is finished or a signal stops it; print the result, return its URI.

    If `process` is one of several, all train together and end alike. A model that is less accurate on the
    held-out images than `min_accuracy`, in [0, 1], is published too, and then the chief raises QualityError.
    The champion is challenged if `publish.release` is set. A worker returns "".
    """
    shutdown.grace_seconds = spec.train.grace_seconds
    shutdown.advice = "A longer train.grace_seconds may help."
    require_tensorflow()  # before a run starts
    with Console(spec.train.log_interval_seconds, log_format=log_format) as console:
        console.banner()
        spec = choose_settings(spec, cache_dir, console, fresh)
        # If only some processes restart after the run has finished, they must not wait for the others.
        folder = find_finished_run(spec, fresh) if process.process_count > 1 else None
        if folder is not None:
            print_finished(folder, console)
        else:
            with _process_group(process, spec, console) as group:
                job = Job(spec, cache_dir, console, shutdown, group)
                if process.is_chief:
                    folder = run_chief(job, fresh)
                else:
                    run_worker(job)
        run_gates(folder if process.is_chief else None, spec, cache_dir, console, shutdown, min_accuracy)
        return folder.at("") if folder is not None else ""


def require_devices(accelerator: str) -> None:
    """Raise AcceleratorError unless this host has `accelerator`, before a run starts."""
    import_tensorflow()
    from trainer.distributed.devices import require_accelerator

    require_accelerator(accelerator)


@contextmanager
def _process_group(process: ProcessInfo, spec: RunSpec, console: Console) -> Iterator[ProcessGroup]:
    """Join the processes of the run; an error within the block ends all of them with its exit code."""
    fingerprint = {"version": __version__, "run_name": str(spec.run_name), **setting_digests(spec)}
    group = join_process_group(process, fingerprint, spec.train.meet_seconds, console.on_message)
    group.on_failure(_end_soon)
    try:
        yield group
    except BaseException as error:
        exit_code = error.exit_code if isinstance(error, TrainerError) else TrainerError.exit_code
        group.shutdown(exit_code, without_secrets(str(error)) or type(error).__name__)
        raise
    group.shutdown()


def _end_soon(error: TrainerError) -> None:
    """End this process 8 s after a peer has failed, even if the main thread is blocked."""

    def end() -> None:
        write_stderr(f"Error: {without_secrets(str(error))}\n")
        os._exit(error.exit_code)

    timer = threading.Timer(_END_SECONDS, end)
    timer.daemon = True
    timer.start()


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
