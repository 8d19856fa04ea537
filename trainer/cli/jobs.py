"""`trainer status`, `logs`, `cancel` and `list`: what became of what was sent.

In: a place and the name of a job there. Out: its state and the reason for it, what it says, or its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Protocol, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
_OURS = "app.kubernetes.io/managed-by=trainer"


def _place(command: Command) -> Command:
    for option in (
        click.option("--context", metavar="NAME", help="gke: of kubectl.  [default: the current one]"),
        click.option("--namespace", default="trainer", show_default=True, help="gke: of the cluster."),
        click.argument("place", type=click.Choice(["docker", "gke"])),
    ):
        command = option(command)
    return command


@click.command()
@_place
@click.argument("name")
def status(place: str, namespace: str, context: str | None, name: str) -> None:
    """Say how a job goes, and why."""
    for line in _jobs(place, namespace, context).status(name):
        click.echo(line)


@click.command()
@_place
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until it ends.")
@click.option("--worker", type=click.IntRange(0), default=0, show_default=True, help="Which of several.")
def logs(place: str, namespace: str, context: str | None, name: str, follow: bool, worker: int) -> None:
    """Print what a job says."""
    _jobs(place, namespace, context).logs(name, worker, follow)


@click.command()
@_place
@click.argument("name")
def cancel(place: str, namespace: str, context: str | None, name: str) -> None:
    """End a job; its checkpoint is kept, and the same run can go on."""
    click.echo(f"ended      {name}{_jobs(place, namespace, context).cancel(name)}")


@click.command("list")
@_place
def list_jobs(place: str, namespace: str, context: str | None) -> None:
    """List the jobs that were sent, and how they go."""
    for line in _jobs(place, namespace, context).overview() or ["no jobs"]:
        click.echo(line)


class _Jobs(Protocol):
    def status(self, name: str) -> list[str]:
        """Return lines."""

    def logs(self, name: str, worker: int, is_following: bool) -> None:
        """Print them."""

    def cancel(self, name: str) -> str:
        """Return what is to be added."""

    def overview(self) -> list[str]:
        """Return a line a job."""


def _jobs(place: str, namespace: str, context: str | None) -> _Jobs:
    return _Containers() if place == "docker" else _Cluster(namespace, context)


class _Cluster:
    def __init__(self, namespace: str, context: str | None) -> None:
        from trainer.launch.kubectl import Kubectl

        self.kubectl = Kubectl(namespace, context)

    def status(self, name: str) -> list[str]:
        from trainer.launch.plan import SPEC

        job = self.kubectl.get("job", name)
        given = job["spec"]["template"]["spec"]["containers"][0].get("env", [])
        text = next((each.get("value") for each in given if each["name"] == SPEC), None)
        return [*self._state(job), *_progress(text, name)]

    def logs(self, name: str, worker: int, is_following: bool) -> None:
        raise SystemExit(self.kubectl.logs(name, worker, is_following))

    def cancel(self, name: str) -> str:
        from trainer.exits import UsageError

        removed = []
        for kind in ("cronjob", "job", "service"):
            try:
                self.kubectl.delete(kind, name)
                removed.append(kind)
            except UsageError as error:
                if "not found" not in str(error):
                    raise
        if not removed:
            raise UsageError(f"There is no such job; `trainer list gke` shows them. Received: {name}")
        return f" ({', '.join(removed)})"

    def overview(self) -> list[str]:
        crons, jobs = self.kubectl.find("cronjobs", _OURS), self.kubectl.find("jobs", _OURS)
        coming = [f"{cron['metadata']['name']}  at {cron['spec']['schedule']}" for cron in crons]
        return [*coming, *(self._state(job)[0] for job in jobs)]

    def _state(self, job: dict[str, Any]) -> list[str]:
        from trainer.launch.state import JOB_LABEL, state_of

        pods = self.kubectl.find("pods", f"{JOB_LABEL}={job['metadata']['name']}")
        return state_of(job, pods, datetime.now(timezone.utc)).text()


class _Containers:
    def __init__(self) -> None:
        from trainer.launch.image import open_engine

        self.client = open_engine()

    def status(self, name: str) -> list[str]:
        from trainer.launch.container import container_environment, container_state
        from trainer.launch.plan import SPEC

        lines = container_state(self.client, name).text()
        return [*lines, *_progress(container_environment(self.client, name).get(SPEC), name)]

    def logs(self, name: str, worker: int, is_following: bool) -> None:
        from trainer.launch.container import container_lines

        for data in container_lines(self.client, name, is_following):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def cancel(self, name: str) -> str:
        from trainer.launch.container import stop_container

        stop_container(self.client, name)
        return ""

    def overview(self) -> list[str]:
        from trainer.launch.container import container_state, list_containers

        return [container_state(self.client, name).text()[0] for name in list_containers(self.client)]


def _progress(spec_text: str | None, name: str) -> list[str]:
    """Return what the run's folder says of how far it is; nothing if it can't be read from here."""
    from trainer.exits import TrainerError
    from trainer.spec import parse_spec
    from trainer.storage.store import open_store

    if spec_text is None:
        return []
    try:
        spec = parse_spec(spec_text, "the job")
        run = open_store(spec.output).below(name)
        found = run.read("history.jsonl")
    except TrainerError as error:
        return [f"  run: {error}"]
    if found is None:
        return [f"  run: {run.uri}, no epoch yet"]
    row = json.loads(found.data.splitlines()[-1])
    told = {key: value for key, value in row.items() if key.endswith("/accuracy")}
    said = ", ".join(f"{name} {value:.3f}" for name, value in told.items())
    return [f"  run: {run.uri}, epoch {row['epoch']} of {spec.train.epochs}, {said}"]
