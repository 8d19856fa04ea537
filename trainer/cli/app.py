"""Command group, help and error output of `trainer`.

Only click and light modules are imported here, so that --help is fast; each command imports what it needs.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trainer import __version__
from trainer.cli.audit import audit
from trainer.cli.bootstrap import (
    TENSORFLOW_MODULES,
    import_tensorflow,
    prepare_libraries,
    translate_memory_errors,
)
from trainer.cli.compare import compare
from trainer.cli.doctor import doctor
from trainer.cli.environment import cache_folder, job_name, job_spec, print_emulator
from trainer.cli.image import image
from trainer.cli.jobs import cancel, list_jobs, logs, status
from trainer.cli.options import DATA_HELP, Share, SpecCommand, examples, run_options, spec_options
from trainer.cli.release import promote, rollback, runs
from trainer.cli.repeat import repeat
from trainer.cli.submit import submit
from trainer.cli.tune import tune
from trainer.compat import command_words
from trainer.errors import TemporaryError, TrainerError, UsageError
from trainer.sanitize import printable_lines, without_secrets
from trainer.shutdown import GracefulShutdown

if TYPE_CHECKING:
    from trainer.cli.console import LogFormat

_WHOLE_SUMMARY = 1_000


class MainGroup(click.Group):
    """The group of all commands: listed in sections, with redacted URLs in click's own usage errors."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._sections: dict[str, Sequence[str]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add `commands`, which --help lists below `title` in this order."""
        self._sections[title] = [command.name or "" for command in commands]
        for command in commands:
            self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands of each section, with a summary that is not cut."""
        width = max(map(len, self.commands))
        for title, names in self._sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"{name:<{width}}", self.commands[name].get_short_help_str(_WHOLE_SUMMARY))
                        for name in names
                    ]
                )

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse as `click.Group` does."""
        words = list(args)  # click empties the list
        with _redacted_errors(words):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and invoke the subcommand as `click.Group` does."""
        with _redacted_errors(command_words(ctx)):
            return super().invoke(ctx)


def redact_tracebacks(words: Sequence[str]) -> None:
    """Redact URLs in the tracebacks of unexpected errors; `words` is the command line."""

    def write(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(without_secrets(text, words))

    sys.excepthook = write


def fail(message: str, exit_code: int, words: Sequence[str]) -> NoReturn:
    """Print `message` with redacted URLs and end the process at once; `words` is the command line."""
    # A closed pipe or a full disk must not change the exit code.
    with suppress(OSError):
        click.echo(f"Error: {printable_lines(without_secrets(message, words))}", err=True)
    with suppress(OSError):
        sys.stdout.flush()
    # A normal interpreter exit would wait for abandoned transfers.
    os._exit(exit_code)


@contextmanager
def _redacted_errors(words: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.message = without_secrets(error.message, words)  # type: ignore[misc]  # click prints this field
        raise


_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)

_SPEC_WIDTH = 79

_SHARD_SET_HELP = "Change a setting of the data: --set data.validation_fraction=0.1."
_TRUST_HELP = (
    "Load a model whose operations may read and write files. Use only for models whose author you know."
)
_LESS_MEMORY = "Use fewer or smaller images at once, or a machine with more memory."


@click.group(
    cls=MainGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("trainer train --data my_photos", "trainer predict runs/latest photo.jpg"),
)
@click.version_option(__version__, message="trainer %(version)s")
def cli() -> None:
    """Train, evaluate and release image classifiers, on this machine or in the cloud."""
    print_emulator()


@click.command(
    cls=SpecCommand,
    epilog=examples(
        "trainer train --data my_photos --output runs --run-name first",
        "trainer train --recipe cifar10 --set train.epochs=20",
    ),
)
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
    log_format: LogFormat | None,
) -> None:
    """Train a model and write it with a report to a run folder.

    Without data, recipe or spec it trains the demo on images that come with the package.
    """
    from trainer.cli.config import load_run_spec
    from trainer.cli.paths import require_unmoved
    from trainer.cli.train import require_devices, train_command
    from trainer.distributed import read_process_info

    shutdown = GracefulShutdown()
    shutdown.install()
    prepare_libraries()
    overrides = {"data.source": data, "output": output, "run_name": run_name}
    sent_spec = job_spec(spec_path, recipe)
    spec = load_run_spec(spec_path, recipe, settings, overrides, job_name(), cache_folder(), sent_spec)
    if spec_path is not None and output is None and run_name is None:
        require_unmoved(spec_path, spec)
    if require_accelerator is not None:
        require_devices(require_accelerator)
    process = read_process_info(os.environ, socket.gethostname())
    train_command(spec, cache_folder(), fresh, shutdown, process, assert_accuracy_at_least, log_format)


@click.command(
    cls=SpecCommand,
    epilog=examples("trainer bench --data my_photos", "trainer bench --recipe cifar10 --seconds 60"),
)
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
    from trainer.cli.config import load_run_spec
    from trainer.cli.train import bench_command, require_devices
    from trainer.distributed import read_share

    shutdown = GracefulShutdown()
    shutdown.install()
    prepare_libraries()
    if (processes := read_share(os.environ)[1]) > 1:
        raise UsageError(
            "The environment describes several processes, and the benchmark measures a single one.",
            "Unset TF_CONFIG and TRAINER_WORKERS.",
            received=f"{processes} processes",
        )
    spec = load_run_spec(spec_path, recipe, settings, {"data.source": data}, None, cache_folder())
    if require_accelerator is not None:
        require_devices(require_accelerator)
    bench_command(spec, seconds, as_json, cache_folder(), shutdown)


@click.command(epilog=examples("trainer recipes", "trainer recipes cifar10"))
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List recipes, or print one."""
    from trainer.recipes import read_recipe, recipe_names, recipe_summary

    if name is not None:
        click.echo(read_recipe(name), nl=False)
        return
    for recipe in recipe_names():
        click.echo(f"{recipe:<24}{recipe_summary(recipe)}")


@click.command(epilog=examples("trainer spec train", "trainer spec optimizer.learning_rate"))
@click.argument("key", metavar="[KEY]", default="", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per setting.")
def spec(key: str, as_json: bool) -> None:
    """Print settings with type, default and meaning.

    KEY is a setting or a section of settings, such as train. Without it, all settings are printed.
    """
    from trainer.spec.describe import describe_setting

    for setting in describe_setting(key):
        if as_json:
            click.echo(json.dumps(setting._asdict(), ensure_ascii=False))
            continue
        click.secho(setting.key, bold=True)
        for text in (f"{setting.type}; default {setting.default}", setting.meaning):
            click.echo(click.wrap_text(text, _SPEC_WIDTH, initial_indent="    ", subsequent_indent="    "))


@click.command(
    epilog=examples(
        "trainer predict runs/first photo.jpg holiday/ --explain maps",
        "trainer predict runs/first gs://my-bucket/pets --top 3 --csv pets.csv",
    )
)
@click.argument("model", metavar="RUN_OR_MODEL")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image instead of a table.")
@click.option(
    "--csv",
    metavar="FILE",
    help="Write the predictions to a .csv file or gs:// URI instead of printing them.",
)
@click.option(
    "--explain",
    metavar="DIR",
    help="Also write a PNG per image to this folder or gs:// URI: what the prediction depends on.",
)
@click.option("--top", metavar="K", type=click.IntRange(1), help="Show the K most probable classes.")
@click.option(
    "--threshold", metavar="SHARE", type=Share(0, 1),
    help="Minimum probability of a predicted class.  [default: none; with several labels, the model's]",
)  # fmt: skip
@click.option("--trust", is_flag=True, help=_TRUST_HELP)
def predict(model: str, images: tuple[str, ...], **options: Any) -> None:
    """Classify images with a trained model.

    An image is a file, a folder, an https:// URL, or a gs:// URI of a file or folder.
    """
    from trainer.cli.predict import PredictOptions, predict_command

    import_tensorflow()
    with translate_memory_errors(_LESS_MEMORY):
        predict_command(model, images, cache_folder(), PredictOptions(**options))


@click.command(
    epilog=examples(
        "trainer evaluate runs/first --data other_photos.zip",
        "trainer evaluate runs/champion --data gs://my-bucket/test --html page.html",
    )
)
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
@click.option(
    "--html", metavar="FILE", help="Write a page with the confusion matrix and the mistakes as images."
)
@click.option("--trust", is_flag=True, help=_TRUST_HELP)
def evaluate(
    model: str, data: str, as_json: bool, settings: tuple[str, ...], html: str | None, trust: bool
) -> None:
    """Evaluate a trained model on labelled images."""
    from trainer.cli.predict import evaluate_command

    import_tensorflow()
    with translate_memory_errors(_LESS_MEMORY):
        evaluate_command(model, data, cache_folder(), as_json, settings, trust, html)


@click.command(
    epilog=examples(
        "trainer shard gs://my-bucket/photos gs://my-bucket/shards",
        "trainer shard my_photos shards --set data.validation_fraction=0.1",
    )
)
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

    In a Kubernetes Indexed Job, each pod packs a part of the images. The same command resumes where it was
    stopped.
    """
    from trainer.cli.shard import shard_command
    from trainer.distributed import read_share

    shutdown = GracefulShutdown()
    shutdown.install()
    prepare_libraries()
    share = read_share(os.environ)
    shard_command(data, output, shard_mib, processes, settings, share, cache_folder(), shutdown)


@click.command(epilog=examples("trainer verify runs/first", "trainer verify gs://my-bucket/runs/latest"))
@click.argument("run", metavar="RUN")
def verify(run: str) -> None:
    """Compare every file of a finished run with its manifest."""
    from trainer.cli.predict import verify_command

    prepare_libraries()
    verify_command(run)


cli.add_section("Train and evaluate", train, evaluate, predict, tune, repeat)
cli.add_section("Compare and release", compare, runs, promote, rollback, verify)
cli.add_section("Cloud jobs", submit, status, logs, cancel, list_jobs, image)
cli.add_section("Tools", audit, doctor, spec, recipes, bench, shard)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a code of `trainer.errors.EXIT_CODES`."""
    words = list(arguments) if arguments is not None else sys.argv[1:]
    redact_tracebacks(words)
    # Commands that save before they exit install a `GracefulShutdown` of their own.
    GracefulShutdown().install()
    try:
        cli.main(args=words, prog_name="trainer")
    except TrainerError as error:
        fail(str(error), error.exit_code, words)
    except ModuleNotFoundError as error:
        if error.name not in TENSORFLOW_MODULES:
            raise
        missing = UsageError(
            "TensorFlow is not installed.",
            "Run `pip install '.[cpu]'`, or gpu or tpu, in the folder of this project.",
            received=f"no module {error.name}",
        )
        fail(str(missing), missing.exit_code, words)
    except OSError as error:
        explained = _explain_os_error(error)
        if explained is None:
            raise
        fail(str(explained), explained.exit_code, words)


def _explain_os_error(error: OSError) -> TrainerError | None:
    """Return the error to print for an unusable path or a full disk; None for any other error."""
    if error.errno in _UNUSABLE:
        return UsageError(
            f"{error.filename} cannot be used.", "Choose another path.", received=error.strerror
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TemporaryError(
            "The disk is full.", "Free some space and run the same command again.", received=error
        )
    return None
