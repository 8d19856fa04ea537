"""`trainer status`, `logs`, `cancel` and `list`: what became of what was sent.

In: a place and the name of a job there. Out: its state and the reason for it, what it says, or its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from trainer.launch.kubectl import Kubectl

Command = TypeVar("Command", bound=Callable[..., Any])
_OURS = "app.kubernetes.io/managed-by=trainer"


def _place(command: Command) -> Command:
    for option in (
        click.option("--context", metavar="NAME", help="Of kubectl.  [default: the current one]"),
        click.option("--namespace", default="trainer", show_default=True, help="Of the cluster."),
        click.argument("place", type=click.Choice(["gke"])),
    ):
        command = option(command)
    return command


@click.command()
@_place
@click.argument("name")
def status(place: str, namespace: str, context: str | None, name: str) -> None:
    """Say how a job goes, and why."""
    from trainer.launch.state import JOB_LABEL, state_of

    kubectl = _kubectl(namespace, context)
    job = kubectl.get("job", name)
    pods = kubectl.find("pods", f"{JOB_LABEL}={name}")
    state = state_of(job, pods, datetime.now(timezone.utc))
    for line in [*state.text(), *_progress(job)]:
        click.echo(line)


@click.command()
@_place
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until it ends.")
@click.option("--worker", type=click.IntRange(0), default=0, show_default=True, help="Which of several.")
def logs(place: str, namespace: str, context: str | None, name: str, follow: bool, worker: int) -> None:
    """Print what a job says."""
    raise SystemExit(_kubectl(namespace, context).logs(name, worker, follow))


@click.command()
@_place
@click.argument("name")
def cancel(place: str, namespace: str, context: str | None, name: str) -> None:
    """End a job; its checkpoint is kept, and the same run can go on."""
    from trainer.exits import UsageError

    kubectl = _kubectl(namespace, context)
    removed = []
    for kind in ("cronjob", "job", "service"):
        try:
            kubectl.delete(kind, name)
            removed.append(kind)
        except UsageError as error:
            if "not found" not in str(error):
                raise
    if not removed:
        raise UsageError(f"There is no such job. Received: {name} in namespace {namespace}")
    click.echo(f"ended      {name} ({', '.join(removed)})")


@click.command("list")
@_place
def list_jobs(place: str, namespace: str, context: str | None) -> None:
    """List the jobs that were sent, and how they go."""
    from trainer.launch.state import JOB_LABEL, state_of

    kubectl = _kubectl(namespace, context)
    crons, jobs = kubectl.find("cronjobs", _OURS), kubectl.find("jobs", _OURS)
    for cron in crons:
        click.echo(f"{cron['metadata']['name']}  at {cron['spec']['schedule']}")
    for job in jobs:
        pods = kubectl.find("pods", f"{JOB_LABEL}={job['metadata']['name']}")
        click.echo(state_of(job, pods, datetime.now(timezone.utc)).text()[0])
    if not crons and not jobs:
        click.echo(f"no jobs in namespace {namespace}")


def _kubectl(namespace: str, context: str | None) -> Kubectl:
    from trainer.launch.kubectl import Kubectl

    return Kubectl(namespace, context)


def _progress(job: dict[str, Any]) -> list[str]:
    """Return what the run's folder says of how far it is; nothing if it can't be read from here."""
    from trainer.exits import TrainerError
    from trainer.launch.plan import SPEC
    from trainer.spec import parse_spec
    from trainer.storage.store import open_store

    container = job["spec"]["template"]["spec"]["containers"][0]
    text = next((each.get("value") for each in container.get("env", []) if each["name"] == SPEC), None)
    if text is None:
        return []
    try:
        spec = parse_spec(text, "the job")
        run = open_store(spec.output).below(job["metadata"]["name"])
        found = run.read("history.jsonl")
    except TrainerError as error:
        return [f"  run: {error}"]
    if found is None:
        return [f"  run: {run.uri}, no epoch yet"]
    row = json.loads(found.data.splitlines()[-1])
    told = {key: value for key, value in row.items() if key.endswith("/accuracy")}
    said = ", ".join(f"{name} {value:.3f}" for name, value in told.items())
    return [f"  run: {run.uri}, epoch {row['epoch']} of {spec.train.epochs}, {said}"]
