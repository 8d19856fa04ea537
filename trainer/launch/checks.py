"""Preflight checks of what a job needs: bucket, image, engine, output, cluster, project and quotas.

Each check returns or yields `Check`s, with a remedy if something is wrong. What cannot be verified from
this machine is "unknown" and not an error, as the job has permissions of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from docker.errors import NotFound
from pydantic import AfterValidator, Field, StrictFloat, StrictInt

from trainer.errors import TemporaryError, TrainerError, UsageError
from trainer.launch.accelerators import Accelerator
from trainer.launch.container import SERVICE, Engine, EngineResponse, engine_message, translate_engine_errors
from trainer.launch.google import Google, PermissionsResponse
from trainer.launch.kubectl import (
    CREATE_NAMESPACE,
    CRON_JOBS,
    FORBIDDEN,
    JOB_SETS,
    JOBS,
    LOCAL_QUEUES,
    NO_KIND,
    Kubectl,
    KubectlError,
)
from trainer.launch.kubernetes import ACCESS_RIGHTS
from trainer.launch.plan import JobPlan
from trainer.launch.responses import Response, read_response
from trainer.launch.vertex import Project
from trainer.storage.store import GS, split_uri

WRITING = ("storage.objects.create", "storage.objects.delete", "storage.objects.get", "storage.objects.list")
READING = ("storage.objects.get", "storage.objects.list")
_BUCKET_NAME = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
_SHOWN = 200


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    """One or two words."""
    state: Literal["ok", "wrong", "unknown"]
    finding: str
    """A clause without a full stop."""
    remedy: str = ""
    """What to do, as a sentence; empty if nothing is needed."""


def require(check: Check) -> Check:
    """Return `check`. Raises UsageError if its state is "wrong"."""
    if check.state == "wrong":
        raise UsageError(f"{check.finding[:1].upper()}{check.finding[1:]}.", check.remedy, check.name)
    return check


def failed(name: str, error: TrainerError, remedy: str = "") -> Check:
    """Return a "wrong" check for `error`; the remedy defaults to that of the error."""
    return Check(name, "wrong", _finding_of(error), remedy or error.remedy)


def unknown(name: str, error: TrainerError) -> Check:
    """Return an "unknown" check for `error`."""
    return Check(name, "unknown", _finding_of(error))


def _finding_of(error: TrainerError) -> str:
    received = "" if error.received is None else f" ({error.received})"
    return f"{error.problem.rstrip('.')}{received}"[:_SHOWN]


def check_bucket(uri: str, google: Google | None, url: str, permissions: Sequence[str] = WRITING) -> Check:
    """Check that the bucket of the gs:// URI exists and that the caller has `permissions` on it.

    `url` is the endpoint of Cloud Storage or of an emulator. Without `google` the result is "unknown".
    """
    bucket, _ = split_uri(uri)
    name = f"bucket {bucket}"
    if not re.fullmatch(_BUCKET_NAME, bucket):
        return Check(
            name, "wrong", f"the bucket name {bucket!r} is invalid",
            "Use lowercase letters, digits, hyphens, underscores and dots.",
        )  # fmt: skip
    if google is None:
        return Check(
            name, "unknown", "not checked, because this machine has no Google Cloud credentials",
            "Create them with `gcloud auth application-default login`.",
        )  # fmt: skip
    bucket_url = f"{url}/storage/v1/b/{bucket}"
    try:
        response = google.find(
            f"{bucket_url}/iam/testPermissions", PermissionsResponse, permissions=list(permissions)
        )
        if response is None:
            if google.find(bucket_url) is None:
                return Check(
                    name, "wrong", f"the bucket {GS}{bucket} does not exist",
                    f"Create it with `gcloud storage buckets create {GS}{bucket}`, or check the name.",
                )  # fmt: skip
            return Check(name, "unknown", "it exists, but its permissions cannot be read")
    except TrainerError as error:
        return unknown(name, error)
    missing = sorted(set(permissions) - set(response.get("permissions", ())))
    if missing:
        return Check(
            name, "unknown", f"it exists, but you do not have {', '.join(missing)}",
            "The service account of the job needs these permissions; roles/storage.objectUser contains them.",
        )  # fmt: skip
    return Check(name, "ok", "it exists, and you have access")


class _Descriptor(EngineResponse):
    digest: str = Field(alias="digest")


class _Distribution(EngineResponse):
    descriptor: _Descriptor


class _EngineVersion(EngineResponse):
    version: str
    os: str
    arch: str


class _EngineImage(EngineResponse):
    size: StrictInt


class _EngineInfo(EngineResponse):
    runtimes: dict[str, Any] | None = None


def check_registry_image(image: str, client: Engine | None) -> Check:
    """Check that the registry has `image`, through a Docker engine; the finding is its digest."""
    name = "image"
    if client is None:
        return Check(name, "unknown", "not checked, because no Docker engine responds")
    try:
        with translate_engine_errors():
            response = client.inspect_distribution(image)
        return Check(name, "ok", str(read_response(_Distribution, response, SERVICE)["Descriptor"]["digest"]))
    except NotFound as error:
        return _missing_image(image, engine_message(error))
    except TrainerError as error:
        message = str(error.received)
    # Older engines have no status code for it; the phrase cannot be part of a name, as names have no spaces.
    if "manifest unknown" in message:
        return _missing_image(image, message)
    return Check(
        name,
        "unknown",
        message[:_SHOWN],
        "Log in to the registry with `docker login`, if it requires it.",
    )


def _missing_image(image: str, message: str) -> Check:
    return Check(
        "image", "wrong", f"the registry does not have the image {image} ({message[:_SHOWN]})",
        "Push it with `trainer image push`, or choose another with --image.",
    )  # fmt: skip


def check_engine(client: Engine) -> Check:
    """Return a check with the version and the platform of the engine."""
    try:
        with translate_engine_errors():
            version = read_response(_EngineVersion, client.version(), SERVICE)
    except TrainerError as error:
        return failed("engine", error)
    return Check("engine", "ok", f"Docker {version['Version']}, {version['Os']}/{version['Arch']}")


def check_engine_image(image: str, client: Engine) -> Check:
    """Check that the engine has `image`."""
    try:
        with translate_engine_errors():
            response = read_response(_EngineImage, client.inspect_image(image), SERVICE)
    except NotFound as error:
        return Check(
            "image", "wrong", f"the Docker engine does not have {image} ({engine_message(error)[:_SHOWN]})",
            "Build it with `trainer image build`, pull it with `docker pull`, or choose another: --image.",
        )  # fmt: skip
    except TrainerError as error:
        return unknown("image", error)
    return Check("image", "ok", f"{image}, {response['Size'] / 1e9:.2f} GB")


def check_engine_accelerator(accelerator: Accelerator, client: Engine) -> Check:
    """Check that the engine can provide the accelerator to a container."""
    name = "accelerator"
    if accelerator.kind == "cpu":
        return Check(name, "ok", "none required")
    try:
        with translate_engine_errors():
            info = read_response(_EngineInfo, client.info(), SERVICE)
    except TrainerError as error:
        return unknown(name, error)
    if accelerator.kind == "gpu" and "nvidia" in (info.get("Runtimes") or {}):
        return Check(name, "ok", "the Docker engine has the NVIDIA runtime")
    return Check(
        name, "wrong", f"the Docker engine has no runtime for {accelerator.name}",
        "Install the NVIDIA Container Toolkit on its machine for GPUs, or use --accelerator cpu.",
    )  # fmt: skip


def check_folder(output: Path) -> Check:
    """Check that runs can be written to a local folder, which need not exist yet."""
    existing = next(folder for folder in (output, *output.parents) if folder.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Check("output", "ok", str(output))
    return Check("output", "wrong", f"{existing} is not writable", "Choose another folder with --output.")


_CLUSTER_PERMISSIONS = (
    *((verb, kind) for kind in (JOBS, CRON_JOBS) for verb in ("create", "get", "list", "delete")),
    ("create", "services"), ("get", "services"), ("delete", "services"), *ACCESS_RIGHTS,
    ("list", "pods"), ("get", "pods/log"), ("list", "events"),
)  # fmt: skip


def check_cluster(
    kubectl: Kubectl, account: str, queue: str | None, accelerator: Accelerator, is_gke: bool
) -> Iterator[Check]:
    """Yield checks of kubectl, the cluster and what a job needs; stop if the cluster is unreachable."""
    try:
        yield Check("kubectl", "ok", kubectl.version())
        where = kubectl.where()
    except (UsageError, TemporaryError) as error:
        yield failed("kubectl", error)
        return
    try:
        namespace = _check_object(kubectl, "namespaces", kubectl.namespace, CREATE_NAMESPACE)
    except (UsageError, TemporaryError) as error:
        yield failed("cluster", error)
        return
    yield Check("cluster", "ok", where) if namespace.state == "ok" else namespace
    if namespace.state == "wrong":
        return
    try:
        remedy = f"{CREATE_NAMESPACE} Name another service account with --service-account."
        yield _check_object(kubectl, "serviceaccounts", account, remedy)
        yield _check_cluster_permissions(kubectl)
        if queue is not None:
            yield check_queue(kubectl, queue)
        if accelerator.kind != "cpu" and is_gke:
            yield _check_nodes(kubectl, accelerator)
    except (UsageError, TemporaryError) as error:
        yield failed("cluster", error)


def check_name(kubectl: Kubectl, plan: JobPlan) -> Iterator[Check]:
    """Check that no object of another kind has the job's name; yield checks that could not be made.

    Raises UsageError if one has the name, TemporaryError.
    """
    own = CRON_JOBS if plan.schedule else JOB_SETS if plan.is_jobset else JOBS
    for kind in (CRON_JOBS, JOB_SETS, JOBS):
        try:
            if kind == own or kubectl.get(kind, plan.name) is None:
                continue
        except KubectlError as error:
            if error.reason != NO_KIND:
                yield _unreadable(f"name {plan.name}", f"get {kind}", error)
            continue
        other = {CRON_JOBS: "schedule", JOB_SETS: "JobSet", JOBS: "job"}[kind]
        raise UsageError(
            f"A {other} of this name already exists.",
            f"Choose another name with --run-name, or cancel the {other}: `trainer cancel gke {plan.name}`.",
            plan.name,
        )


def check_queue(kubectl: Kubectl, queue: str) -> Check:
    """Check that the namespace has the Kueue local queue `queue`. Raises TemporaryError."""
    remedy = (
        f"List the local queues with `kubectl get {LOCAL_QUEUES} -n {kubectl.namespace}`, and name one with "
        "--queue."
    )
    return _check_object(kubectl, LOCAL_QUEUES, queue, remedy)


def _check_object(kubectl: Kubectl, kind: str, name: str, remedy: str) -> Check:
    """Check that an object exists. Raises TemporaryError, and errors that do not concern this object."""
    label = f"{kind.partition('.')[0].removesuffix('s')} {name}"
    try:
        if kubectl.get(kind, name) is None:
            return Check(label, "wrong", f"the {label} does not exist", remedy)
    except KubectlError as error:
        if error.reason == NO_KIND and kind == LOCAL_QUEUES:
            finding = f"the cluster does not have Kueue, so that a job would start at once ({error.line})"
            return Check(label, "wrong", finding, "Omit --queue, or install Kueue.")
        if error.reason != FORBIDDEN:
            raise
        return _unreadable(label, f"get {kind}", error)
    return Check(label, "ok", "it exists")


def _unreadable(name: str, permission: str, error: KubectlError) -> Check:
    """Return an "unknown" check: the permission is missing or the cluster does not respond."""
    if error.reason == FORBIDDEN:
        return Check(name, "unknown", f"not checked: this requires the permission {permission}")
    return unknown(name, error)


def _check_cluster_permissions(kubectl: Kubectl) -> Check:
    name = "permissions"
    try:
        allowed = kubectl.allowed(_CLUSTER_PERMISSIONS)
    except KubectlError as error:
        return _unreadable(name, "create selfsubjectaccessreviews.authorization.k8s.io", error)
    missing = [
        " ".join(permission)
        for permission, is_allowed in zip(_CLUSTER_PERMISSIONS, allowed, strict=True)
        if not is_allowed
    ]
    if not missing:
        return Check(name, "ok", "you can create, follow and cancel jobs")
    remedy = "Ask the owner of the cluster for the role edit in the namespace."
    return Check(name, "wrong", f"you cannot {', '.join(missing)}", remedy)


def _check_nodes(kubectl: Kubectl, accelerator: Accelerator) -> Check:
    label = f"cloud.google.com/gke-{'tpu-' * (accelerator.kind == 'tpu')}accelerator={accelerator.gke}"
    try:
        count = len(kubectl.find("nodes", "-l", label))
    except KubectlError as error:
        return _unreadable("accelerator", "list nodes", error)
    if count:
        return Check(
            "accelerator", "ok", f"{count} {'node' if count == 1 else 'nodes'} with {accelerator.name}"
        )
    return Check(
        "accelerator", "unknown", f"no node has {accelerator.name} now",
        "An Autopilot cluster, or a node pool with autoscaling, creates one. Otherwise add a node pool with "
        "this accelerator.",
    )  # fmt: skip


_APIS = ("aiplatform", "cloudscheduler", "logging")
_PROJECT_PERMISSIONS = (
    "aiplatform.customJobs.create", "aiplatform.customJobs.get", "aiplatform.customJobs.list",
    "aiplatform.customJobs.cancel", "logging.logEntries.list",
)  # fmt: skip
_GRANT_ROLES = "Ask the owner of the project for roles/aiplatform.user and roles/logging.viewer."
_ALL_REGIONS = "GPUS_ALL_REGIONS"
_ACT_AS = "iam.serviceAccounts.actAs"


class _Api(Response):
    state: str = ""


def _require_int(value: str | int) -> str | int:
    int(value)
    return value


class _VertexQuotaBucket(Response):
    effective_limit: Annotated[str | int, AfterValidator(_require_int)] = 0
    dimensions: dict[str, str] = Field(default_factory=dict)


class _VertexQuotaLimit(Response):
    quota_buckets: tuple[_VertexQuotaBucket, ...] = ()


class _VertexQuotaMetric(Response):
    consumer_quota_limits: tuple[_VertexQuotaLimit, ...] = ()


class _ComputeQuota(Response):
    metric: str = ""
    limit: StrictFloat
    usage: StrictFloat = 0


class _ComputeQuotas(Response):
    quotas: tuple[_ComputeQuota, ...] = ()


def check_project(project: Project, google: Google) -> Iterator[Check]:
    """Yield checks of the project; stop if the project cannot be read."""
    parent = f"projects/{project.project}"
    try:
        for service in _APIS:
            url = f"{project.at('serviceusage')}/v1/{parent}/services/{service}.googleapis.com"
            yield _check_enabled(service, google.get(url, _Api), project.project)
        url = f"{project.at('cloudresourcemanager')}/v1/{parent}:testIamPermissions"
        response = google.post(url, {"permissions": list(_PROJECT_PERMISSIONS)}, PermissionsResponse)
        yield _check_google_permissions("permissions", _PROJECT_PERMISSIONS, response, _GRANT_ROLES)
        google.get(f"{project.url}/{project.parent}/customJobs", pageSize="1")
        yield Check(f"region {project.region}", "ok", "Vertex AI responds")
        if project.service_account is not None:
            yield _check_service_account(project, google)
    except TrainerError as error:
        yield failed(f"project {project.project}", error)


def check_vertex_quota(
    project: Project, google: Google, accelerator: Accelerator, count: int, is_spot: bool
) -> Check:
    """Check that the region's Vertex AI quota covers `count` accelerators."""
    metric = f"custom_model_training_{'preemptible_' if is_spot else ''}{accelerator.quota}"
    if not accelerator.quota:
        return Check(
            "quota", "unknown", f"the name of the Vertex AI quota for {accelerator.name} is not known"
        )
    name = quote(f"aiplatform.googleapis.com/{metric}", safe="")
    service = f"projects/{project.project}/services/aiplatform.googleapis.com"
    url = f"{project.at('serviceusage')}/v1beta1/{service}/consumerQuotaMetrics/{name}"
    try:
        response = google.find(url, _VertexQuotaMetric) or {}
    except TrainerError as error:
        return unknown("quota", error)
    limits = [
        int(bucket.get("effectiveLimit", 0))
        for limit in response.get("consumerQuotaLimits", ())
        for bucket in limit.get("quotaBuckets", ())
        if bucket.get("dimensions", {}).get("region", project.region) == project.region
    ]
    return _check_limit(metric, limits[-1] if limits else None, count, f"in {project.region}")


def check_compute_quota(
    project: Project, google: Google, accelerator: Accelerator, count: int, is_spot: bool
) -> Iterator[Check]:
    """Check the Compute Engine quotas, which apply to GKE nodes.

    These are the quota of the region and, for GPUs, the quota of all regions together if the project has one.
    """
    metric = f"{'PREEMPTIBLE_' if is_spot else ''}{accelerator.compute_quota}"
    if not accelerator.compute_quota:
        yield Check("quota", "unknown", f"Compute Engine lists no regional quota for {accelerator.name}")
        return
    url = f"{project.at('compute')}/compute/v1/projects/{project.project}"
    try:
        free = _free_quota(google, f"{url}/regions/{project.region}", metric)
        yield _check_limit(metric, free, count, f"in {project.region}")
        free = _free_quota(google, url, _ALL_REGIONS) if accelerator.kind == "gpu" else None
        if free is not None:
            yield _check_limit(_ALL_REGIONS, free, count, "in all regions")
    except TrainerError as error:
        yield unknown("quota", error)


def _free_quota(google: Google, url: str, metric: str) -> int | None:
    """Return the unused quota of a Compute Engine resource, None if it does not list the metric."""
    quotas: list[dict[str, Any]] = google.get(url, _ComputeQuotas).get("quotas", [])
    free = [int(quota["limit"] - quota.get("usage", 0)) for quota in quotas if quota.get("metric") == metric]
    return free[0] if free else None


def _check_limit(metric: str, limit: int | None, count: int, scope: str) -> Check:
    name = f"quota {scope}"
    if limit is None:
        return Check(name, "unknown", f"{metric} is not listed")
    if limit < 0 or limit >= count:  # -1 means unlimited
        return Check(name, "ok", f"{metric}: {limit if limit >= 0 else 'unlimited'}, {count} required")
    remedy = f"Request more {metric} on the quota page of the console, or choose another region."
    return Check(name, "wrong", f"{metric}: {limit}, {count} required", remedy)


def _check_enabled(service: str, response: dict[str, Any], project: str) -> Check:
    name = f"API {service}"
    if response.get("state") == "ENABLED":
        return Check(name, "ok", "enabled")
    remedy = f"Enable it with `gcloud services enable {service}.googleapis.com --project {project}`."
    return Check(name, "wrong", "not enabled", remedy)


def _check_google_permissions(
    name: str, required: tuple[str, ...], response: dict[str, Any], remedy: str
) -> Check:
    missing = [permission for permission in required if permission not in response.get("permissions", ())]
    if missing:
        return Check(name, "wrong", f"you do not have {', '.join(missing)}", remedy)
    return Check(name, "ok", f"you have {', '.join(required)}")


def _check_service_account(project: Project, google: Google) -> Check:
    email = project.service_account
    url = f"{project.at('iam')}/v1/projects/{project.project}/serviceAccounts/{email}:testIamPermissions"
    response = google.post(url, {"permissions": [_ACT_AS]}, PermissionsResponse)
    remedy = f"Ask the owner of {email} for roles/iam.serviceAccountUser on it."
    return _check_google_permissions(f"account {email}", (_ACT_AS,), response, remedy)
