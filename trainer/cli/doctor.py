"""Implementation of `trainer doctor`: checks of this machine, and of the requirements of a job.

Prints one line per check, with a remedy unless it passed. Exits with code 2 if a check failed.
"""

from __future__ import annotations

import os
import platform as host_platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainer.cli.environment import find_engine, find_google, storage_url
from trainer.cli.options import cluster_options, doctor_options, examples, project_options
from trainer.errors import UsageError
from trainer.sanitize import printable

if TYPE_CHECKING:
    from trainer.launch.checks import Check
    from trainer.launch.vertex import Project

_WIDTH = 11
_MIN_MEMORY_BYTES = 2 << 30
_MIN_DISK_BYTES = 1 << 30


@click.command(
    epilog=examples(
        "trainer doctor", "trainer doctor gke --accelerator nvidia-l4:2 --output gs://my-bucket/runs"
    )
)
@click.argument(
    "platform",
    metavar="[docker|gke|vertex]",
    type=click.Choice(["docker", "gke", "vertex"]),
    required=False,
)
@doctor_options
@cluster_options
@project_options
def doctor(platform: str | None, **options: Any) -> None:
    """Check this machine, or what a job needs on a platform.

    Without a platform, the checks cover TensorFlow and its devices, memory, disk, pretrained weights and the
    output folder; with one, programs, permissions, bucket, image and quota.
    """
    checkers = {None: _machine, "docker": _docker, "gke": _gke, "vertex": _vertex}
    target = platform or "this machine"
    checks = []
    for check in checkers[platform](options):
        checks.append(check)
        click.echo(printable(f"{check.state:<{_WIDTH}}{check.name}: {check.finding}"))
        if check.remedy and check.state != "ok":
            click.echo(f"{'':<{_WIDTH}}{check.remedy}")
    if wrong := sum(check.state == "wrong" for check in checks):
        raise UsageError(
            f"Not ready for {platform}." if platform else "This machine is not ready.",
            "See the remedy below each failed check.",
            received=f"{wrong} wrong",
        )
    if unknown := [check.name for check in checks if check.state == "unknown"]:
        passed = f"{len(checks) - len(unknown)} of {len(checks)} checks for {target} passed"
        click.echo(f"unknown    {passed}; not checked: {', '.join(unknown)}")
        return
    click.echo(f"ready      {f'for {platform}' if platform else 'to train on this machine'}")


def _machine(options: dict[str, Any]) -> Iterator[Check]:
    """Yield the checks of this machine; the last one imports TensorFlow, which takes seconds."""
    from trainer.cli.environment import cache_folder
    from trainer.data.weights import has_package
    from trainer.launch.checks import Check, check_folder
    from trainer.storage.store import is_bucket, require_uri, without_scheme

    yield Check("Python", "ok", f"{host_platform.python_version()}, {sys.executable}")
    yield _check_memory()
    yield _check_disk(cache_folder())
    output = options["output"] or "runs"
    require_uri(output)
    yield from (
        _bucket(output) if is_bucket(output) else [check_folder(Path(without_scheme(output)).absolute())]
    )
    weights = "efficientnet-lite0" if has_package() else "not installed: models are trained from scratch"
    yield Check("pretrained weights", "ok", weights)
    yield _check_tensorflow()


def _check_memory() -> Check:
    from trainer.launch.checks import Check

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"{pages / 2**30:.1f} GiB, {len(os.sched_getaffinity(0))} CPU cores"
    if pages < _MIN_MEMORY_BYTES:
        remedy = f"use a machine with at least {_MIN_MEMORY_BYTES >> 30} GiB"
        return Check("memory", "wrong", text, remedy)
    return Check("memory", "ok", text)


def _check_disk(cache_dir: Path) -> Check:
    """Return the check of the free space for downloads and unpacked archives."""
    from trainer.launch.checks import Check

    existing = next(path for path in (cache_dir, *cache_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / 2**30:.1f} GiB free for {cache_dir}"
    if not os.access(existing, os.W_OK):
        return Check("cache", "wrong", f"{existing} is not writable", "set XDG_CACHE_HOME to another folder")
    if free < _MIN_DISK_BYTES:
        return Check("cache", "wrong", text, "free some space, or set XDG_CACHE_HOME to another folder")
    return Check("cache", "ok", text)


def _check_tensorflow() -> Check:
    """Return the check of TensorFlow and the devices that it finds."""
    from trainer.cli.bootstrap import import_tensorflow, require_tensorflow
    from trainer.launch.checks import Check, failed

    try:
        require_tensorflow()
        import_tensorflow()
        import tensorflow as tf

        from trainer.distributed.devices import find_cluster

        return Check("TensorFlow", "ok", f"{tf.__version__}, {find_cluster().description}".partition("\n")[0])
    except ModuleNotFoundError as error:
        remedy = "run `pip install '.[cpu]'`, or gpu or tpu, in the folder of this project"
        return Check("TensorFlow", "wrong", f"not installed: no module {error.name}", remedy)
    except UsageError as error:
        return failed("TensorFlow", error)


def _docker(options: dict[str, Any]) -> Iterator[Check]:
    from trainer.launch.accelerators import find_accelerator
    from trainer.launch.checks import (
        check_engine,
        check_engine_accelerator,
        check_engine_image,
        check_folder,
        failed,
    )
    from trainer.launch.container import open_engine
    from trainer.storage.store import is_bucket, require_uri, without_scheme

    accelerator = find_accelerator(options["accelerator"])
    output = options["output"] or "runs"
    require_uri(output)
    folder = Path(without_scheme(output)).absolute()
    try:
        client = open_engine()
    except UsageError as error:
        yield failed("engine", error)
    else:
        yield check_engine(client)
        yield check_engine_accelerator(accelerator, client)
        yield check_engine_image(options["image"], client)
    yield from _bucket(output) if is_bucket(output) else [check_folder(folder)]


def _gke(options: dict[str, Any]) -> Iterator[Check]:
    from trainer.launch.accelerators import find_accelerator
    from trainer.launch.checks import check_cluster, check_compute_quota
    from trainer.launch.kubectl import Kubectl
    from trainer.launch.kubernetes import check_names

    accelerator = find_accelerator(options["accelerator"])
    kubectl = Kubectl(options["namespace"], options["context"])
    account = options["service_account"] or "trainer"
    check_names(options["namespace"], account, options["queue"])
    yield from check_cluster(kubectl, account, options["queue"], accelerator, not options["no_gke_labels"])
    yield from _bucket(options["output"])
    yield from _image(options["image"])
    project = _project(options | {"service_account": None})  # on GKE it is a Kubernetes account
    if project is not None and accelerator.count and (google := find_google(project.url)) is not None:
        yield from check_compute_quota(
            project, google, accelerator, accelerator.count * options["workers"], options["spot"]
        )


def _vertex(options: dict[str, Any]) -> Iterator[Check]:
    from trainer.launch.accelerators import find_accelerator
    from trainer.launch.checks import Check, check_project, check_vertex_quota, failed
    from trainer.launch.google import Google

    accelerator, project = find_accelerator(options["accelerator"]), _project(options)
    if project is None:
        raise UsageError("There is no Google Cloud project.", "Set --project ID.", received="no --project")
    try:
        google = Google(project.url)
    except UsageError as error:
        yield failed("credentials", error)
        return
    yield Check("credentials", "ok", google.account)
    yield from check_project(project, google)
    yield from _bucket(options["output"], project)
    yield from _image(options["image"])
    count = max(1, accelerator.count) * options["workers"]
    yield check_vertex_quota(project, google, accelerator, count, options["spot"] or options["flex_start"])


def _project(options: dict[str, Any]) -> Project | None:
    from trainer.launch.vertex import Project

    if not options["project"]:
        return None
    return Project(options["project"], options["region"], options["service_account"], options["endpoint"])


def _bucket(output: str | None, project: Project | None = None) -> Iterator[Check]:
    from trainer.launch.checks import Check, check_bucket
    from trainer.storage.store import is_bucket

    if output is None or not is_bucket(output):
        yield Check("bucket", "unknown", "not checked", "set --output gs://BUCKET/RUNS")
        return
    url = storage_url(project)
    yield check_bucket(output, find_google(url), url)


def _image(image: str) -> Iterator[Check]:
    from trainer.launch.checks import Check, check_registry_image

    if "/" not in image:
        yield Check(
            "image", "unknown", "not checked", "set --image to the name that `trainer image push` printed"
        )
        return
    yield check_registry_image(image, find_engine())
