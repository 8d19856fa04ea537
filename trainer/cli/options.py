"""Option groups and examples of the commands, and suggestions for unknown options.

The suggestion is the nearest option, or `--set` with the nearest setting. Data in the place of the spec file
are used as --data.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from trainer.errors import UsageError
from trainer.sanitize import shown_address

Command = TypeVar("Command", bound=Callable[..., Any])

DATA_HELP = "A folder, an archive (.zip, .tar, .tar.gz), an import file, or its https:// or gs:// URL."
_SPEC_SUFFIXES = (".yaml", ".yml")
_DATA_SUFFIXES = (
    ".zip", ".tar", ".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar", ".zst",
    ".csv", ".tsv", ".jsonl", ".parquet", ".tfrecord",
)  # fmt: skip


def examples(*commands: str) -> str:
    """Return the epilog of a command that lists example `commands`, one per line and not wrapped."""
    return "\n".join(("\b", "Examples:", *(f"  {command}" for command in commands)))


class SpecCommand(click.Command):
    """A command with settings; the error for `--epochs 3` suggests `--set train.epochs=...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as `click.Command` does; suggest an option for an unknown one, and accept positional data."""
        try:
            remaining = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            raise click.NoSuchOption(
                name, f"There is no option {name}.{self._suggestion(name)}", ctx=ctx
            ) from None
        _move_positional_data(ctx.params)
        return remaining

    def _suggestion(self, option: str) -> str:
        from trainer.spec.problems import known_keys

        options = {key.rpartition(".")[2]: f"--set {key}=..." for key in reversed(known_keys())}
        options |= {param.name: param.opts[0] for param in self.params if param.name}
        name = option.lstrip("-").replace("-", "_")
        nearest = difflib.get_close_matches(name, options, n=1, cutoff=0.7)
        return f" Did you mean {options[nearest[0]]}?" if nearest else " --help lists them."


def _move_positional_data(params: dict[str, Any]) -> None:
    """Move data in the place of the spec file to the parameter `data`. Raises UsageError."""
    path, data = params.get("spec_path"), params.get("data")
    if path is None or not _is_data(path):
        return
    if data is not None:
        raise UsageError(
            "The data are set twice, as an argument and with --data.",
            "Remove one of the two; a spec file ends with .yaml.",
            received=f"{shown_address(path)} and --data {shown_address(data)}",
        )
    params["spec_path"], params["data"] = None, path


def _is_data(path: str) -> bool:
    """Return whether an argument is data rather than a spec file.

    Raises UsageError for a run folder, and for a name that is neither a file nor a folder.
    """
    lower = path.lower()
    if ":/" in path or lower.startswith("embedded:"):
        return not lower.endswith(_SPEC_SUFFIXES)
    if os.path.isdir(path):
        _require_no_run(path)
        return True
    if not os.path.exists(path) and not lower.endswith(_SPEC_SUFFIXES):
        raise UsageError(
            "There is no such file or folder.", _remedy_for_name(path), received=shown_address(path)
        )
    return lower.endswith(_DATA_SUFFIXES)


def _require_no_run(folder: str) -> None:
    spec = os.path.join(folder, "spec.yaml")
    if os.path.isfile(spec) and os.path.isfile(os.path.join(folder, "starts.jsonl")):
        raise UsageError(
            "This folder is a run, not data.",
            f"To resume the run, use its spec: trainer train {shlex.quote(spec)}",
            received=folder,
        )


def _remedy_for_name(name: str) -> str:
    from trainer.recipes import recipe_names

    nearest = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.8)
    if nearest:
        return f"Did you mean --recipe {nearest[0]}?"
    return "Check the path. The argument is a spec file (.yaml), or data: a folder, an archive or a URL."


class Share(click.FloatRange):
    """A `click.FloatRange` that rejects NaN, which passes the comparisons with its bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert as `click.FloatRange` does."""
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


_SPEC = (
    click.argument("spec_path", metavar="[SPEC.yaml|DATA]", required=False),
    click.option("--recipe", metavar="NAME", help="Start from a recipe; `trainer recipes` lists them."),
    click.option("--data", metavar="URI", help=DATA_HELP),
)
_OUTPUT = (
    click.option("--output", metavar="DIR", help="Folder or gs:// URI for runs.  [default: runs]"),
    click.option("--run-name", metavar="NAME", help="Name of the run; an unfinished run is resumed."),
    click.option("--fresh", is_flag=True, help="Discard an unfinished run of this name and start over."),
)
_SETTINGS = (
    click.option(
        "--require-accelerator",
        metavar="KIND",
        help="Exit with code 69 unless the host has this accelerator: gpu, gpu:N (at least N GPUs) or tpu.",
    ),
    click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override a setting, for example --set train.epochs=3. Can be repeated.",
    ),
)


_ACCURACY = click.option(
    "--assert-accuracy-at-least",
    metavar="SHARE",
    type=Share(0, 1),
    help="Exit with code 4 if the published model's accuracy on held-out images is below SHARE, for example "
    "0.9.",
)
_LOG = click.option(
    "--log", "log_format", type=click.Choice(["text", "json"]),
    help="Log progress as plain lines or as JSON lines, without progress bars.  "
    "[default: bars on a terminal, otherwise json]",
)  # fmt: skip
_PARAMETER_HELP = (
    "Search a setting: KEY=LOW..HIGH, KEY=LOW..HIGH:log, KEY=LOW..HIGH:STEP or KEY=A|B|C. Can be repeated."
)


def search_options(is_required: bool) -> Callable[[Command], Command]:
    """Return a decorator that adds the options of a search; `is_required` for a search command."""
    trials = (
        "Number of trials."
        if is_required
        else "Search settings with this number of trials, instead of one run."
    )
    return lambda command: _with(
        command,
        (
            click.option("--trials", type=click.IntRange(1, 1000), required=is_required, help=trials),
            click.option(
                "--parameter", "parameters", metavar="KEY=RANGE", multiple=True, required=is_required,
                help=_PARAMETER_HELP,
            ),
            click.option(
                "--metric", type=click.Choice(["accuracy", "loss", "mean_average_precision"]),
                default="accuracy", show_default=True,
                help="Metric on the held-out images that selects the best trial.",
            ),
            click.option("--no-pruning", is_flag=True, help="Do not stop trials early."),
        ),
    )  # fmt: skip


_IMAGE = (
    click.option(
        "--variant", type=click.Choice(["cpu", "gpu", "tpu"]), default="gpu", show_default=True,
        help="Hardware that the image runs on.",
    ),
    click.option(
        "--base", metavar="IMAGE", default="python:3.12-slim", show_default=True,
        help="Debian-based image, with Python 3.10 to 3.13 or without Python.",
    ),
    click.option(
        "--name", metavar="NAME", default="trainer", show_default=True,
        help="Image name with registry and project.",
    ),
)  # fmt: skip


_ACCELERATOR = click.option(
    "--accelerator", metavar="NAME[:COUNT]", default="nvidia-l4", show_default=True,
    help="Accelerator of each worker: nvidia-l4:2, tpu-v5e:2x4, cpu.",
)  # fmt: skip
_WORKERS = click.option(
    "--workers", type=click.IntRange(1, 1000), default=1, show_default=True,
    help="Number of machines that train together.",
)  # fmt: skip
_SPOT = click.option("--spot", is_flag=True, help="Use Spot VMs (cheaper, can be preempted).")
_IMAGE_NAME = click.option(
    "--image", metavar="NAME", envvar="TRAINER_IMAGE", default="trainer:gpu", show_default=True,
    help="Container image. The environment variable TRAINER_IMAGE overrides the default.",
)  # fmt: skip
_JOB = (
    _ACCELERATOR,
    _WORKERS,
    _SPOT,
    click.option("--schedule", metavar="CRON", help="Cron schedule, such as '0 3 * * 1'."),
    click.option(
        "--time-zone", metavar="NAME", default="Etc/UTC", show_default=True, help="Time zone of the schedule."
    ),
    click.option(
        "--deadline-hours", type=click.FloatRange(0.1, 24 * 28),
        help="Hours after which the job is stopped.  [default: 24]",
    ),
    _IMAGE_NAME,
    click.option("--prices", metavar="FILE", help="YAML file with prices that replace the list prices."),
    click.option(
        "--dry-run", is_flag=True, help="Print the job without passwords, and submit nothing."
    ),
    click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
)  # fmt: skip
_QUEUE = click.option("--queue", metavar="NAME", help="Kueue local queue that admits the job.")
_NO_GKE_LABELS = click.option(
    "--no-gke-labels", is_flag=True, help="Omit GKE's node labels, for clusters other than GKE."
)
_FLEX_START = click.option(
    "--flex-start", is_flag=True, help="Wait for capacity at a lower price (flex-start)."
)
_GKE = (
    click.option(
        "--service-account", default="trainer", show_default=True, help="Kubernetes service account."
    ),
    _QUEUE,
    click.option(
        "--jobset",
        is_flag=True,
        help="Create a JobSet (0.10 or later): all workers restart when one fails or loses its machine.",
    ),
    _NO_GKE_LABELS,
)
_VERTEX = (
    click.option(
        "--service-account", metavar="EMAIL", help="Service account of the job; required for a schedule."
    ),
    _FLEX_START,
)
_DOCTOR = (
    _ACCELERATOR, _WORKERS, _SPOT, _IMAGE_NAME, _OUTPUT[0],
    click.option("--service-account", metavar="NAME", help="Service account, a name or an email."),
    _QUEUE, _NO_GKE_LABELS, _FLEX_START,
)  # fmt: skip


def doctor_options(command: Command) -> Command:
    """Add the options that describe a planned job."""
    return _with(command, _DOCTOR)


def on_gke_options(command: Command) -> Command:
    """Add the options of a job on a Kubernetes cluster."""
    return _with(command, _GKE)


def on_vertex_options(command: Command) -> Command:
    """Add the options of a job on Vertex AI."""
    return _with(command, _VERTEX)


def submit_options(command: Command) -> Command:
    """Add the options that describe a spec, its output, a job and a search."""
    return _with(
        command, (*_SPEC, *_OUTPUT[:2], _SETTINGS[1], _ACCURACY, *_JOB, search_options(is_required=False))
    )


_PROJECT = (
    click.option("--project", metavar="ID", envvar="GOOGLE_CLOUD_PROJECT", help="Google Cloud project ID."),
    click.option(
        "--region", envvar="GOOGLE_CLOUD_REGION", default="us-central1", show_default=True,
        help="Google Cloud region.",
    ),
    click.option("--endpoint", metavar="URL", help="Endpoint to use in place of Google's."),
)  # fmt: skip
_CLUSTER = (
    click.option("--namespace", default="trainer", show_default=True, help="Kubernetes namespace."),
    click.option("--context", metavar="NAME", help="kubectl context.  [default: the current one]"),
)


def project_options(command: Command) -> Command:
    """Add the options that select a Google Cloud project."""
    return _with(command, _PROJECT)


def cluster_options(command: Command) -> Command:
    """Add the options that select a Kubernetes cluster and namespace."""
    return _with(command, _CLUSTER)


def image_options(command: Command) -> Command:
    """Add --variant, --base and --name of `trainer image build` and `push`."""
    return _with(command, _IMAGE)


def spec_options(command: Command) -> Command:
    """Add the options that describe a spec and its accelerator."""
    return _with(command, (*_SPEC, *_SETTINGS))


def repeat_options(command: Command) -> Command:
    """Add the options that describe a spec and the output of its runs."""
    return _with(command, (*_SPEC, *_OUTPUT[:2], _SETTINGS[1]))


def tune_options(command: Command) -> Command:
    """Add the options that describe a spec, its study, and the accelerator that each trial needs."""
    name = click.option(
        "--run-name", metavar="NAME", help="Name of the study; an unfinished study is resumed."
    )
    return _with(command, (*_SPEC, _OUTPUT[0], name, *_SETTINGS))


def run_options(command: Command) -> Command:
    """Add the options that describe a spec, its run, its required accuracy and the log format."""
    return _with(command, (*_SPEC, *_OUTPUT, *_SETTINGS, _ACCURACY, _LOG))


def _with(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
