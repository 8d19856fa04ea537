"""Command group and entry point of `trainer`.

Only click and light modules are imported here, so that --help is fast; each command imports what it needs.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from trainer import __version__
from trainer.cli.bootstrap import (
    TENSORFLOW_MODULES,
    import_tensorflow,
    memory_explained,
    prepare_libraries,
)
from trainer.cli.compare import compare
from trainer.cli.doctor import doctor
from trainer.cli.errors import CleanGroup, clean_tracebacks, fail
from trainer.cli.image import image
from trainer.cli.jobs import cancel, list_jobs, logs, status
from trainer.cli.options import DATA_HELP, SpecCommand, run_options, spec_options
from trainer.cli.release import promote, rollback, runs
from trainer.cli.repeat import repeat
from trainer.cli.services import EMULATOR
from trainer.cli.submit import submit
from trainer.cli.tune import tune
from trainer.errors import TrainerError, UsageError
from trainer.sanitize import shown_address
from trainer.shutdown import GracefulShutdown

_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)

# The first is set by the manifests of `trainer submit`, the second by Vertex AI.
_JOB_NAMES = ("TRAINER_RUN_NAME", "CLOUD_ML_JOB_ID")

_SPEC_OF_JOB = "TRAINER_SPEC"

_SHARD_SET_HELP = "Change a setting of the data: --set data.validation_fraction=0.1."
_TRUST_HELP = (
    "Load a model whose operations may read and write files. Use only for models whose author you know."
)
_LESS_MEMORY = "give fewer or smaller pictures at once, or use a machine with more"


@click.group(
    cls=CleanGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="trainer %(version)s")
def cli() -> None:
    """Train, evaluate and release image classifiers, on this machine or in the cloud."""
    _announce_emulator()


@cli.command(cls=SpecCommand)
@run_options
def train(
    spec_path: str | None,
    recipe: str | None,
    data: str | None,
    output: str | None,
    run_name: str | None,
    fresh: bool,
    require_accelerator: str | None,
    settings: tuple[str, ...],
    assert_accuracy_at_least: float | None,
) -> None:
    """Train a model and write it with a report to a run folder.

    Without data, recipe or spec it trains the demo on images that come with the package.
    """
    from trainer.cli.config import given_spec
    from trainer.cli.paths import require_unmoved
    from trainer.cli.train import require_devices, train_command
    from trainer.distributed import read_process_info

    stop = GracefulShutdown()
    stop.install()
    prepare_libraries()
    overrides = {"data.source": data, "output": output, "run_name": run_name}
    sent = None if spec_path or recipe else os.environ.get(_SPEC_OF_JOB)
    spec = given_spec(spec_path, recipe, settings, overrides, name_of_job(), cache_folder(), sent)
    if spec_path is not None and output is None and run_name is None:
        require_unmoved(spec_path, spec)
    if require_accelerator is not None:
        require_devices(require_accelerator)
    place = read_process_info(os.environ, socket.gethostname())
    train_command(spec, cache_folder(), fresh, stop, place, assert_accuracy_at_least)


@cli.command(cls=SpecCommand)
@spec_options
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=20.0,
    show_default=True,
    help="Seconds to measure for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def bench(
    spec_path: str | None,
    recipe: str | None,
    data: str | None,
    require_accelerator: str | None,
    settings: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Measure training speed and name the bottleneck."""
    from trainer.cli.bench import bench_command
    from trainer.cli.config import given_spec
    from trainer.cli.train import require_devices
    from trainer.distributed import read_share

    stop = GracefulShutdown()
    stop.install()
    prepare_libraries()
    if (processes := read_share(os.environ)[1]) > 1:
        raise UsageError(
            "One process alone is measured, and the environment says that there are others; unset TF_CONFIG "
            "and TRAINER_WORKERS.",
            received=f"{processes} processes",
        )
    spec = given_spec(spec_path, recipe, settings, {"data.source": data}, None, cache_folder())
    if require_accelerator is not None:
        require_devices(require_accelerator)
    bench_command(spec, seconds, as_json, cache_folder(), stop)


@cli.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List recipes, or print one."""
    from trainer.recipes import read_recipe, recipe_names, recipe_summary

    if name is not None:
        click.echo(read_recipe(name), nl=False)
        return
    for each in recipe_names():
        click.echo(f"{each:<24}{recipe_summary(each)}")


@cli.command()
@click.argument("model", metavar="RUN_OR_MODEL")
@click.argument("images", metavar="IMAGE_OR_FOLDER...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image instead of a table.")
@click.option("--trust", is_flag=True, help=_TRUST_HELP)
def predict(model: str, images: tuple[str, ...], as_json: bool, trust: bool) -> None:
    """Classify images with a trained model."""
    from trainer.cli.predict import predict_command

    import_tensorflow()
    with memory_explained(_LESS_MEMORY):
        predict_command(model, images, cache_folder(), as_json, trust)


@cli.command()
@click.argument("model", metavar="RUN_OR_MODEL")
@click.option("--data", metavar="URI", required=True, help=DATA_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print all metrics as one JSON object.")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a setting of the data: --set data.max_rejected=0.05.",
)
@click.option("--trust", is_flag=True, help=_TRUST_HELP)
def evaluate(model: str, data: str, as_json: bool, settings: tuple[str, ...], trust: bool) -> None:
    """Evaluate a trained model on labelled images."""
    from trainer.cli.predict import evaluate_command

    import_tensorflow()
    with memory_explained(_LESS_MEMORY):
        evaluate_command(model, data, cache_folder(), as_json, settings, trust)


@cli.command()
@click.argument("data", metavar="DATA")
@click.argument("output", metavar="OUTPUT")
@click.option(
    "--shard-mib", type=click.IntRange(1, 65_536), default=128, show_default=True, help="Size of a shard."
)
@click.option(
    "--processes",
    type=click.IntRange(1, 1_024),
    help="Number of processes.  [default: one per core]",
)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help=_SHARD_SET_HELP)
def shard(data: str, output: str, shard_mib: int, processes: int | None, settings: tuple[str, ...]) -> None:
    """Pack images into TFRecord shards, for large data.

    The pods of an Indexed Job share the work. The same command resumes where it was stopped.
    """
    from trainer.cli.shard import shard_command
    from trainer.distributed import read_share

    stop = GracefulShutdown()
    stop.install()
    prepare_libraries()
    share = read_share(os.environ)
    shard_command(data, output, shard_mib, processes, settings, share, cache_folder(), stop)


@cli.command()
@click.argument("run", metavar="RUN")
def verify(run: str) -> None:
    """Compare every file of a finished run with its manifest."""
    from trainer.cli.predict import verify_command

    prepare_libraries()
    verify_command(run)


def cache_folder() -> Path:
    """Return the folder for downloads and unpacked archives, below the XDG cache directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "trainer"
    try:
        return Path.home() / ".cache" / "trainer"
    except RuntimeError:
        # For example in a container whose user has no passwd entry.
        raise UsageError(
            "There is no home folder to keep the cache in; set XDG_CACHE_HOME to a folder.",
            received="no HOME",
        ) from None


def _announce_emulator() -> None:
    address = os.environ.get(EMULATOR)
    if address and not address.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"{EMULATOR} is a URL, as http://localhost:9023.", received=f"{shown_address(address)!r}"
        )
    if address:
        click.echo(
            f"note       {EMULATOR} is set: gs:// goes to {shown_address(address)}, not to Google", err=True
        )


for _command in (
    compare,
    repeat,
    tune,
    promote,
    rollback,
    runs,
    image,
    submit,
    status,
    logs,
    cancel,
    list_jobs,
    doctor,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a code of `trainer.errors.EXIT_CODES`."""
    words = list(arguments) if arguments is not None else sys.argv[1:]
    clean_tracebacks(words)
    # Commands that save before they exit install a `GracefulShutdown` of their own.
    GracefulShutdown().install()
    try:
        cli.main(args=words, prog_name="trainer")
    except TrainerError as error:
        fail(str(error), error.exit_code, words)
    except ModuleNotFoundError as error:
        if error.name not in TENSORFLOW_MODULES:
            raise
        fail(
            "TensorFlow is not installed; `pip install '.[cpu]'` in this project's folder, or gpu or tpu, "
            "brings it. "
            f"Received: no module {error.name}",
            2,
            words,
        )
    except OSError as error:
        if error.errno in _UNUSABLE:
            message = f"{error.filename} can't be used; choose another path. Received: {error.strerror}"
            fail(message, 2, words)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"The disk is full; free some space and run the same command again. Received: {error}"
        fail(message, 75, words)


def name_of_job() -> str | None:
    """Return the job name from the environment, so that each restart finds the same run, or None."""
    return next((os.environ[name] for name in _JOB_NAMES if os.environ.get(name)), None)
