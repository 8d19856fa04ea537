"""Option groups of the commands, and suggestions for unknown options.

The suggestion is the nearest option, or `--set` with the nearest setting.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DATA_HELP = "A folder, an archive (.zip, .tar, .tar.gz), an import file, or its https:// or gs:// URL."


class SpecCommand(click.Command):
    """A command with settings; the error for `--epochs 3` suggests `--set train.epochs=...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as `click.Command` does, with a suggestion for an unknown option."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name
            raise click.NoSuchOption(name, f"There is no option {name}.{self._hint(name)}", ctx=ctx) from None

    def _hint(self, option: str) -> str:
        from trainer.spec.problems import known_keys

        meant = {key.rpartition(".")[2]: f"--set {key}=..." for key in reversed(known_keys())}
        meant |= {param.name: param.opts[0] for param in self.params if param.name}
        name = option.lstrip("-").replace("-", "_")
        nearest = difflib.get_close_matches(name, meant, n=1, cutoff=0.7)
        return f" Did you mean {meant[nearest[0]]}?" if nearest else " --help lists them."


class _Share(click.FloatRange):
    """A `click.FloatRange` that rejects NaN, which passes the comparisons with its bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert as `click.FloatRange` does."""
        found = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"{value!r} is no number.", param, ctx)
        return found


_WHAT = (
    click.argument("spec_path", metavar="[SPEC.yaml]", required=False),
    click.option("--recipe", metavar="NAME", help="Start from a recipe; `trainer recipes` lists them."),
    click.option("--data", metavar="URI", help=DATA_HELP),
)
_WHERE = (
    click.option("--output", metavar="DIR", help="Folder or gs:// URI for runs.  [default: runs]"),
    click.option("--run-name", metavar="NAME", help="Name of the run; an unfinished run is resumed."),
    click.option("--fresh", is_flag=True, help="Discard an unfinished run of this name and start over."),
)
_HOW = (
    click.option(
        "--require-accelerator",
        metavar="KIND",
        help="Exit with code 69 unless the host has this accelerator: gpu, gpu:4 (at least) or tpu.",
    ),
    click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="Change a setting: --set train.epochs=3.",
    ),
)


_ACCURACY = click.option(
    "--assert-accuracy-at-least",
    metavar="SHARE",
    type=_Share(0, 1),
    help="Exit with code 4 if the published model's accuracy on held-out images is lower: 0.9.",
)
_PARAMETER_HELP = (
    "Search a setting: KEY=LOW..HIGH, with :log or :STEP after it, or KEY=A|B|C. Can be repeated."
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
                help="Figure of the held-out images that the best trial is chosen by.",
            ),
            click.option("--no-pruning", is_flag=True, help="Train every trial to its end."),
        ),
    )  # fmt: skip


_IMAGE = (
    click.option(
        "--variant", type=click.Choice(["cpu", "gpu", "tpu"]), default="gpu", show_default=True,
        help="Hardware that the image runs on.",
    ),
    click.option(
        "--base", metavar="IMAGE", default="python:3.12-slim", show_default=True,
        help="Base image: a Debian, with Python 3.10 to 3.13 or without Python.",
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
    help="Container image; the default is TRAINER_IMAGE.",
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
        "--dry-run", is_flag=True, help="Print what would be sent, without passwords, and send nothing."
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
_ON_GKE = (
    click.option(
        "--service-account", default="trainer", show_default=True, help="Kubernetes service account."
    ),
    _QUEUE,
    click.option(
        "--jobset",
        is_flag=True,
        help="Create a JobSet (0.10 or later): all workers start again when one fails or loses its machine.",
    ),
    _NO_GKE_LABELS,
)
_ON_VERTEX = (
    click.option(
        "--service-account", metavar="EMAIL", help="Service account of the job; required for a schedule."
    ),
    _FLEX_START,
)
_DOCTOR = (
    _ACCELERATOR, _WORKERS, _SPOT, _IMAGE_NAME, _WHERE[0],
    click.option("--service-account", metavar="NAME", help="Service account, a name or an email."),
    _QUEUE, _NO_GKE_LABELS, _FLEX_START,
)  # fmt: skip


def doctor_options(command: Command) -> Command:
    """Add the options that describe a planned job."""
    return _with(command, _DOCTOR)


def on_gke_options(command: Command) -> Command:
    """Add the options of a job on a Kubernetes cluster."""
    return _with(command, _ON_GKE)


def on_vertex_options(command: Command) -> Command:
    """Add the options of a job on Vertex AI."""
    return _with(command, _ON_VERTEX)


def submit_options(command: Command) -> Command:
    """Add the options that describe a spec, its output, a job and a search."""
    return _with(command, (*_WHAT, *_WHERE[:2], _HOW[1], _ACCURACY, *_JOB, search_options(is_required=False)))


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
    """Add the options that describe a container image."""
    return _with(command, _IMAGE)


def spec_options(command: Command) -> Command:
    """Add the options that describe a spec and its accelerator."""
    return _with(command, (*_WHAT, *_HOW))


def repeat_options(command: Command) -> Command:
    """Add the options that describe a spec and the output of its runs."""
    return _with(command, (*_WHAT, *_WHERE[:2], _HOW[1]))


def tune_options(command: Command) -> Command:
    """Add the options that describe a spec, its study, and the accelerator that each trial needs."""
    name = click.option(
        "--run-name", metavar="NAME", help="Name of the study; an unfinished one is continued."
    )
    return _with(command, (*_WHAT, _WHERE[0], name, *_HOW))


def run_options(command: Command) -> Command:
    """Add the options that describe a spec, its run and its required accuracy."""
    return _with(command, (*_WHAT, *_WHERE, *_HOW, _ACCURACY))


def _with(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
