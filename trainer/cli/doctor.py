"""Implementation of `trainer doctor`: checks of the requirements of a job.

Prints one line per check, with a remedy unless it passed. Exits with code 2 if a check failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainer.cli.options import cluster_options, doctor_options, examples, project_options
from trainer.cli.services import find_engine, find_google, storage_url, understood
from trainer.errors import UsageError
from trainer.sanitize import printable

if TYPE_CHECKING:
    from trainer.launch.checks import Check
    from trainer.launch.vertex import Project

_WIDTH = 11


@click.command(
    epilog=examples(
        "trainer doctor", "trainer doctor gke --accelerator nvidia-l4:2 --output gs://my-bucket/runs"
    )
)
@click.argument("place", type=click.Choice(["docker", "gke", "vertex"]))
@doctor_options
@cluster_options
@project_options
def doctor(place: str, **given: Any) -> None:
    """Check what a job needs: programs, rights, bucket, image, quota."""
    checks = {"docker": _docker, "gke": _gke, "vertex": _vertex}[place]
    found = []
    with understood(place):
        for check in checks(given):
            found.append(check)
            click.echo(printable(f"{check.state:<{_WIDTH}}{check.name}: {check.said}"))
            if check.remedy and check.state != "ok":
                click.echo(f"{'':<{_WIDTH}}{check.remedy}")
    if wrong := sum(check.state == "wrong" for check in found):
        raise UsageError(f"Not ready for {place}; each line says what to do.", received=f"{wrong} wrong")
    if unknown := [check.name for check in found if check.state == "unknown"]:
        passed = f"{len(found) - len(unknown)} of {len(found)} checks for {place} passed"
        click.echo(f"unknown    {passed}; not checked: {', '.join(unknown)}")
        return
    click.echo(f"ready      for {place}")


def _docker(given: dict[str, Any]) -> Iterator[Check]:
    from trainer.launch.accelerators import find_accelerator
    from trainer.launch.checks import (
        check_engine,
        check_engine_accelerator,
        check_engine_image,
        check_folder,
        failed,
    )
    from trainer.launch.image import open_engine
    from trainer.storage.store import is_bucket, require_uri, without_scheme

    wanted = find_accelerator(given["accelerator"])
    output = given["output"] or "runs"
    require_uri(output)
    folder = Path(without_scheme(output)).absolute()
    try:
        client = open_engine()
    except UsageError as error:
        yield failed("engine", error)
    else:
        yield check_engine(client)
        yield check_engine_accelerator(wanted, client)
        yield check_engine_image(given["image"], client)
    yield from _bucket(output) if is_bucket(output) else [check_folder(folder)]


def _gke(given: dict[str, Any]) -> Iterator[Check]:
    from trainer.launch.accelerators import find_accelerator
    from trainer.launch.cluster_checks import check_cluster
    from trainer.launch.google_checks import check_compute_quota
    from trainer.launch.kubectl import Kubectl
    from trainer.launch.names import check_queue_name, check_service_account

    wanted = find_accelerator(given["accelerator"])
    kubectl = Kubectl(given["namespace"], given["context"])
    account = given["service_account"] or "trainer"
    check_service_account(account)
    if given["queue"] is not None:
        check_queue_name(given["queue"])
    yield from check_cluster(kubectl, account, given["queue"], wanted, not given["no_gke_labels"])
    yield from _bucket(given["output"])
    yield from _image(given["image"])
    there = _project(given | {"service_account": None})  # on GKE it is a Kubernetes account
    if there is not None and wanted.count and (google := find_google(there.url)) is not None:
        yield from check_compute_quota(there, google, wanted, wanted.count * given["workers"], given["spot"])


def _vertex(given: dict[str, Any]) -> Iterator[Check]:
    from trainer.launch.accelerators import find_accelerator
    from trainer.launch.checks import Check, failed
    from trainer.launch.google import Google
    from trainer.launch.google_checks import check_project, check_vertex_quota

    wanted, there = find_accelerator(given["accelerator"]), _project(given)
    if there is None:
        raise UsageError("--project says in which project of Google Cloud.", received="no --project")
    try:
        google = Google(there.url)
    except UsageError as error:
        yield failed("credentials", error)
        return
    yield Check("credentials", "ok", google.account)
    yield from check_project(there, google)
    yield from _bucket(given["output"], there)
    yield from _image(given["image"])
    many = max(1, wanted.count) * given["workers"]
    yield check_vertex_quota(there, google, wanted, many, given["spot"] or given["flex_start"])


def _project(given: dict[str, Any]) -> Project | None:
    from trainer.launch.vertex import Project

    if not given["project"]:
        return None
    return Project(given["project"], given["region"], given["service_account"], given["endpoint"])


def _bucket(output: str | None, project: Project | None = None) -> Iterator[Check]:
    from trainer.launch.checks import Check, check_bucket
    from trainer.storage.store import is_bucket

    if output is None or not is_bucket(output):
        yield Check("bucket", "unknown", "not looked at", "--output gs://BUCKET/RUNS says where runs go")
        return
    url = storage_url(project)
    yield check_bucket(output, find_google(url), url)


def _image(image: str) -> Iterator[Check]:
    from trainer.launch.checks import Check, check_registry_image

    if "/" not in image:
        yield Check("image", "unknown", "not looked for", "--image names it as `trainer image push` did")
        return
    yield check_registry_image(image, find_engine())
