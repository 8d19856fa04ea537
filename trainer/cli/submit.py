"""Implementation of `trainer submit`: plan, confirmation and submission of a job.

With --dry-run the objects are printed and nothing is sent.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainer.cli.environment import EMULATOR, find_engine, find_google, storage_url
from trainer.cli.options import (
    SpecCommand,
    cluster_options,
    examples,
    on_gke_options,
    on_vertex_options,
    project_options,
    submit_options,
)
from trainer.errors import UsageError
from trainer.sanitize import printable, shown_address

if TYPE_CHECKING:
    from trainer.launch.checks import Check
    from trainer.launch.container import ClientHost
    from trainer.launch.kubectl import Kubectl
    from trainer.launch.plan import JobPlan
    from trainer.launch.vertex import Project

_HOUR_SECONDS = 3600
_USUAL_HOURS = 24.0
_HANDED_ON = (EMULATOR, "NO_COLOR")


@click.group(epilog=examples("trainer submit docker my.yaml", "trainer submit gke my.yaml --spot --dry-run"))
def submit() -> None:
    """Submit a run to Docker, GKE or Vertex AI."""


@submit.command(
    "gke",
    cls=SpecCommand,
    epilog=examples(
        "trainer submit gke my.yaml --dry-run",
        "trainer submit gke my.yaml --accelerator nvidia-l4:2 --workers 2 --spot",
    ),
)
@submit_options
@cluster_options
@on_gke_options
def submit_gke(
    namespace: str,
    service_account: str,
    context: str | None,
    queue: str | None,
    jobset: bool,
    no_gke_labels: bool,
    **given: Any,
) -> None:
    """Submit to a Kubernetes cluster through kubectl."""
    from trainer.launch.kubectl import Kubectl
    from trainer.launch.kubernetes import KubernetesCluster, check_names, objects_of, without_secret

    if no_gke_labels and given["spot"]:
        raise UsageError(
            "Spot machines are asked for by a label of GKE; leave one of the two away.",
            received="--spot --no-gke-labels",
        )
    check_names(namespace, service_account, queue)
    plan = _plan("gke", given, queue=queue, is_jobset=jobset)
    objects = objects_of(plan, KubernetesCluster(namespace, service_account, not no_gke_labels))
    if given["dry_run"]:
        comment, shown = without_secret(objects)
        _print_dry_run(plan, f"namespace {namespace}", comment + _as_yaml(shown))
        return
    kubectl = Kubectl(namespace, context)
    where = kubectl.where()
    found = _found_in_cluster(kubectl, plan)
    _ask(plan, where, given["yes"], [*found, *_found(plan)])
    kubectl.create(objects)
    kind = objects[-1]["kind"].lower()
    click.echo(f"created    {kind}/{plan.name}")
    there = "" if namespace == "trainer" else f" --namespace {namespace}"
    words = "list gke" if plan.schedule else f"logs gke {plan.name} -f"
    click.echo(f"follow     trainer {words}{there}{f' --context {context}' if context else ''}")


@submit.command(
    "docker",
    cls=SpecCommand,
    epilog=examples(
        "trainer submit docker --data my_photos --accelerator cpu --image trainer:cpu",
        "trainer submit docker my.yaml --dry-run",
    ),
)
@submit_options
@click.option("--network", metavar="MODE", help="Network mode of the container.  [default: the engine's]")
def submit_docker(network: str | None, **given: Any) -> None:
    """Run on the Docker engine of DOCKER_HOST, or of this host."""
    from trainer.launch.container import container_of, open_engine, start_container
    from trainer.spec import dump_shown_spec, parse_spec

    plan = _plan("docker", given)
    if given["dry_run"]:
        # Printed output may be shared; only the engine receives URLs with passwords.
        shown = replace(plan, spec=parse_spec(dump_shown_spec(plan.spec), "the spec"))
        _print_dry_run(shown, "", f"{json.dumps(container_of(shown, _host(network)), indent=2)}\n")
        return
    body = container_of(plan, _host(network))
    client = open_engine()
    _ask(plan, os.environ.get("DOCKER_HOST") or "the engine of this host", given["yes"], _found(plan))
    with _folder_for(plan.spec.output):
        start_container(client, plan.name, body)
    click.echo(f"started    {plan.name}")
    click.echo(f"follow     trainer logs docker {plan.name} -f")


@submit.command(
    "vertex",
    cls=SpecCommand,
    epilog=examples(
        "trainer submit vertex my.yaml --project my-project --dry-run",
        "trainer submit vertex my.yaml --project my-project --spot",
    ),
)
@submit_options
@project_options
@on_vertex_options
def submit_vertex(
    project: str | None,
    region: str,
    endpoint: str | None,
    service_account: str | None,
    flex_start: bool,
    **given: Any,
) -> None:
    """Submit to Vertex AI as a CustomJob."""
    from trainer.launch.google import Google
    from trainer.launch.vertex import Project, VertexJobs, custom_job, scheduler_job

    plan = _plan("vertex", given, is_flexible=flex_start)
    if not project:
        raise UsageError("--project says in which project of Google Cloud it runs.", received="no --project")
    if flex_start and given["spot"]:
        raise UsageError("A job is --spot or --flex-start, not both.", received="--spot --flex-start")
    there = Project(project, region, service_account, endpoint)
    body = scheduler_job(plan, there) if plan.schedule else custom_job(plan, there)
    if given["dry_run"]:
        _print_dry_run(plan, f"project {project}, {region}", f"{json.dumps(body, indent=2)}\n")
        return
    jobs = VertexJobs(there, Google(there.url))
    _ask(plan, f"project {project}, {region}", given["yes"], _found(plan, there))
    click.echo(f"created    {jobs.create(plan)}")
    words = "list vertex" if plan.schedule else f"logs vertex {plan.name} -f"
    click.echo(f"follow     trainer {words} --project {project} --region {region}")


@contextmanager
def _folder_for(output: str) -> Iterator[None]:
    """Create the output folder, and remove it again if the block fails. Raises UsageError."""
    from trainer.storage.store import is_bucket, without_scheme

    folder = Path(without_scheme(output))
    if is_bucket(output) or folder.is_dir():
        yield
        return
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"The folder for the runs cannot be made ({error.strerror}); give another --output.",
            received=shown_address(output),
        ) from None
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _host(network: str | None) -> ClientHost:
    from trainer.launch.container import ClientHost

    said = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    usual = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    credentials = Path(said).absolute() if said else usual if usual.exists() else None
    handed_on = tuple((name, os.environ[name]) for name in _HANDED_ON if name in os.environ)
    return ClientHost(f"{os.getuid()}:{os.getgid()}", credentials, network, handed_on)


def _plan(place: Any, given: dict[str, Any], **more: Any) -> JobPlan:
    from trainer.cli.config import load_run_spec
    from trainer.cli.environment import cache_folder
    from trainer.cli.tune import search_words
    from trainer.launch.accelerators import find_accelerator
    from trainer.launch.plan import JobPlan, check_plan, make_name, with_price

    overrides = {"data.source": given["data"], "output": given["output"], "run_name": given["run_name"]}
    # A schedule may fire twice, or without new data.
    settings = (*(("publish.skip_unchanged=true",) if given["schedule"] else ()), *given["settings"])
    spec = load_run_spec(given["spec_path"], given["recipe"], settings, overrides, None, cache_folder())
    if "://" not in spec.output:
        # A relative path would be a different one where the job runs.
        spec = spec.model_copy(update={"output": os.path.abspath(os.path.expanduser(spec.output))})
    hours = _hours(place, given["deadline_hours"])
    prices = Path(given["prices"]) if given["prices"] else None
    plan = check_plan(
        JobPlan(
            platform=place,
            name=make_name(spec),
            spec=spec,
            image=given["image"],
            accelerator=find_accelerator(given["accelerator"], prices),
            workers=given["workers"],
            is_spot=given["spot"],
            schedule=given["schedule"],
            time_zone=given["time_zone"],
            search=search_words(spec, given | more),
            accuracy_at_least=given["assert_accuracy_at_least"],
            **more,
            deadline_seconds=round(hours * _HOUR_SECONDS),
        )
    )
    return with_price(plan)


def _hours(place: str, said: float | None) -> float:
    """Return the deadline of the job in hours. Raises UsageError."""
    if said is not None and place == "docker":
        raise UsageError(
            "--deadline-hours is not supported for docker.",
            "Stop the container with `trainer cancel docker`.",
            received=f"--deadline-hours {said:g} for docker",
        )
    if said is not None and not math.isfinite(said):
        raise UsageError("--deadline-hours must be a finite number.", received=said)
    return _USUAL_HOURS if said is None else said


def _found(plan: JobPlan, project: Project | None = None) -> list[Check]:
    """Return the checks of the buckets and the image that the job uses. Raises UsageError if one fails."""
    from trainer.launch.checks import READING, WRITING, check_bucket, check_registry_image, require
    from trainer.launch.plan import locations_of
    from trainer.storage.store import is_bucket

    url = storage_url(project)
    buckets = {
        uri: WRITING if is_written else READING
        for uri, is_written in locations_of(plan.spec).items()
        if is_bucket(uri)
    }
    google = find_google(url) if buckets else None
    found = [require(check_bucket(uri, google, url, asked)) for uri, asked in buckets.items()]
    if plan.platform != "docker":
        found.append(require(check_registry_image(plan.image, find_engine())))
    return found


def _found_in_cluster(kubectl: Kubectl, plan: JobPlan) -> list[Check]:
    """Return the checks of job name and queue. Raises UsageError for a used name or an unknown queue."""
    from trainer.launch.checks import check_name, check_queue, require

    found = list(check_name(kubectl, plan))
    return [*found, require(check_queue(kubectl, plan.queue))] if plan.queue else found


def _print_dry_run(plan: JobPlan, where: str, objects: str) -> None:
    """Print the plan with its cost on standard error, then the objects on standard output."""
    from trainer.launch.plan import describe_plan

    for line in describe_plan(plan, where):
        click.echo(printable(line), err=True)
    click.echo(objects, nl=False)


def _ask(plan: JobPlan, where: str, is_sure: bool, found: Sequence[Check]) -> None:
    from trainer.launch.plan import describe_plan

    for line in describe_plan(plan, where):
        click.echo(printable(line))
    for check in found:
        if check.name == "image" and check.state == "ok":
            click.echo(f"           {check.finding}")
        elif check.state == "unknown":
            click.echo(printable(f"note       {check.name}: {check.finding}"))
    if is_sure:
        return
    try:
        if click.confirm("go ahead?"):
            return
    except click.Abort:
        click.echo()
    raise UsageError("The job was not submitted.", "Use --yes to submit without confirmation.", received="no")


def _as_yaml(objects: list[dict[str, Any]]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """YAML dumper that writes multi-line strings, such as the spec, as literal blocks."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return "---\n".join(yaml.dump(each, Dumper=Dumper, sort_keys=False, width=1000) for each in objects)
