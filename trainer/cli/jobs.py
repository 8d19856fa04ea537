"""Implementation of `trainer status`, `logs`, `cancel` and `list` for submitted jobs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from trainer.cli.options import cluster_options, examples, project_options
from trainer.errors import UsageError
from trainer.sanitize import printable

if TYPE_CHECKING:
    from trainer.launch.cluster_jobs import Choice

Command = TypeVar("Command", bound=Callable[..., Any])
_PROGRESS_SECONDS = 8.0


def _platform_options(command: Command) -> Command:
    """Add the argument for the platform (docker, gke or vertex) and the options of each platform."""
    argument = click.argument("platform", type=click.Choice(["docker", "gke", "vertex"]))
    return argument(cluster_options(project_options(command)))


def _job_name(_: click.Context, __: click.Parameter, name: str) -> str:
    """Return the name of a job. Raises UsageError for one that kubectl could parse as an option."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(
            "This is not the name of a job.", "Use letters, digits and hyphens.", received=f"{name!r}"
        )
    return name


@click.command(epilog=examples("trainer status docker pets", "trainer status gke pets --namespace ml"))
@_platform_options
@click.argument("name", callback=_job_name)
def status(platform: str, name: str, **location: Any) -> None:
    """Show the state of a job and its cause."""
    for line in _jobs(platform, location).status(name):
        click.echo(printable(line))


@click.command(
    epilog=examples(
        "trainer logs docker pets --follow", "trainer logs vertex pets --project my-project --worker 1"
    )
)
@_platform_options
@click.argument("name", callback=_job_name)
@click.option("-f", "--follow", is_flag=True, help="Follow the log until the job ends.")
@click.option("--worker", type=click.IntRange(0), default=0, show_default=True, help="Index of the worker.")
def logs(platform: str, name: str, follow: bool, worker: int, **location: Any) -> None:
    """Print the log of a job."""
    _jobs(platform, location).logs(name, worker, follow)


@click.command(epilog=examples("trainer cancel docker pets", "trainer cancel gke pets --schedule"))
@_platform_options
@click.argument("name", callback=_job_name)
@click.option(
    "--schedule", "choice", flag_value="schedule", help="Cancel the schedule of this name, not the job."
)
@click.option("--job", "choice", flag_value="job", help="Cancel the job of this name, not the schedule.")
def cancel(platform: str, name: str, choice: Choice | None, **location: Any) -> None:
    """Cancel a job. Its checkpoints are kept, and the same run can be resumed."""
    if choice is not None and platform != "gke":
        raise UsageError(
            f"--{choice} does not apply to {platform}.",
            f"Remove --{choice}.",
            received=f"--{choice} for {platform}",
        )
    click.echo(f"ended      {name}{_jobs(platform, location).cancel(name, choice)}")


@click.command("list", epilog=examples("trainer list docker", "trainer list vertex --project my-project"))
@_platform_options
def list_jobs(platform: str, **location: Any) -> None:
    """List submitted jobs and their state."""
    for line in _jobs(platform, location).overview() or ["no jobs"]:
        click.echo(printable(line))


class _Jobs(Protocol):
    def status(self, name: str) -> Iterator[str]:
        """Yield the lines of the state, slow ones last."""

    def logs(self, name: str, worker: int, is_following: bool) -> None:
        """Print the log."""

    def cancel(self, name: str, choice: Choice | None) -> str:
        """Cancel the job; return a suffix for the message."""

    def overview(self) -> list[str]:
        """Return one line per job."""


def _jobs(platform: str, location: Mapping[str, Any]) -> _Jobs:
    if platform == "docker":
        return _Containers()
    if platform == "vertex":
        return _Vertex(location["project"], location["region"], location["endpoint"])
    return _Cluster(location["namespace"], location["context"])


class _Cluster:
    def __init__(self, namespace: str, context: str | None) -> None:
        from trainer.launch.cluster_jobs import ClusterJobs
        from trainer.launch.kubectl import Kubectl

        self.jobs = ClusterJobs(Kubectl(namespace, context))

    def status(self, name: str) -> Iterator[str]:
        named = self.jobs.named(name)
        if named.schedule is not None:
            when = f"{name}  at {named.schedule_text}"
            yield when if named.work else f"{when}, no job yet"
        if named.work is None:
            return
        yield from self.jobs.explain(named.work, datetime.now(timezone.utc)).text()
        yield from _progress(named.work.spec_text, named.work.main["metadata"]["name"])

    def logs(self, name: str, worker: int, is_following: bool) -> None:
        from trainer.launch.cluster_jobs import LogFollower, current_logs

        if is_following:
            lines = LogFollower(self.jobs, name, worker, _print_note).lines()
        else:
            lines = current_logs(self.jobs, name, worker, _print_note)
        with closing(lines):  # stops kubectl if a signal arrives between two lines
            for line in lines:
                click.echo(printable(line))

    def cancel(self, name: str, choice: Choice | None) -> str:
        return f" ({', '.join(self.jobs.cancel(name, choice))})"

    def overview(self) -> list[str]:
        lines, notes = self.jobs.overview(datetime.now(timezone.utc))
        for note in notes:
            _print_note(note)
        return lines


def _print_note(text: str) -> None:
    click.echo(printable(f"note       {text}"), err=True)


class _Containers:
    def __init__(self) -> None:
        from trainer.launch.container import open_engine

        self.client = open_engine()

    def status(self, name: str) -> Iterator[str]:
        from trainer.launch.container import container_environment, container_state
        from trainer.launch.plan import SPEC

        yield from container_state(self.client, name).text()
        yield from _progress(container_environment(self.client, name).get(SPEC), name)

    def logs(self, name: str, worker: int, is_following: bool) -> None:
        from trainer.launch.container import container_lines

        rest = b""
        for data in container_lines(self.client, name, is_following):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                click.echo(printable(line.decode("utf-8", "replace")))
        if rest:
            click.echo(printable(rest.decode("utf-8", "replace")))

    def cancel(self, name: str, choice: Choice | None) -> str:
        from trainer.launch.container import stop_container

        stop_container(self.client, name)
        return ""

    def overview(self) -> list[str]:
        from trainer.launch.container import container_state, list_containers

        return [container_state(self.client, name).text()[0] for name in list_containers(self.client)]


class _Vertex:
    def __init__(self, project: str | None, region: str, endpoint: str | None) -> None:
        from trainer.errors import UsageError
        from trainer.launch.google import Google
        from trainer.launch.vertex import Project, VertexJobs

        if not project:
            raise UsageError(
                "There is no Google Cloud project.", "Set --project ID.", received="no --project"
            )
        there = Project(project, region, endpoint=endpoint)
        self.jobs = VertexJobs(there, Google(there.url))

    def status(self, name: str) -> Iterator[str]:
        yield from self.jobs.state(name, datetime.now(timezone.utc)).text()
        yield from _progress(*self.jobs.run_of(name))

    def logs(self, name: str, worker: int, is_following: bool) -> None:
        for line in self.jobs.lines(name, worker, is_following):
            click.echo(printable(line))

    def cancel(self, name: str, choice: Choice | None) -> str:
        return f" ({self.jobs.cancel(name)})"

    def overview(self) -> list[str]:
        return self.jobs.overview(datetime.now(timezone.utc))


def _progress(spec_text: str | None, name: str) -> list[str]:
    """Return the progress of the run, or a notice if its storage does not respond within 8 seconds."""
    lines: list[str] = []
    # Retries take a minute, and the state of the job is already printed.
    thread = threading.Thread(target=lambda: lines.extend(_read_progress(spec_text, name)), daemon=True)
    thread.start()
    thread.join(_PROGRESS_SECONDS)
    return ["  run: its storage does not respond"] if thread.is_alive() else lines


def _read_progress(spec_text: str | None, name: str) -> list[str]:
    from trainer.errors import TrainerError
    from trainer.spec import parse_spec
    from trainer.storage import open_store
    from trainer.tune.study import count_trials

    if spec_text is None:
        return []
    try:
        spec = parse_spec(spec_text, "the job")
        run = open_store(spec.output).below(name)
        found = run.read("history.jsonl")
        if study := count_trials(run):
            return [f"  study: {run.uri}, {study}"]
    except TrainerError as error:
        return [f"  run: {error}"]
    lines = [
        line for line in (found.data if found else b"").splitlines(keepends=True) if line.endswith(b"\n")
    ]
    if not lines:
        return [f"  run: {run.uri}, no epoch yet"]
    try:
        row = json.loads(lines[-1])
        accuracies = {key: float(value) for key, value in row.items() if key.endswith("/accuracy")}
        epoch = int(row["epoch"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"  run: {run.uri}, its history.jsonl is damaged"]
    text = ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items())
    return [f"  run: {run.uri}, epoch {epoch} of {spec.train.epochs}, {text}"]
