"""Preflight checks of a Google Cloud project: enabled APIs, permissions, quota."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AfterValidator, Field, StrictFloat

from trainer.errors import TrainerError
from trainer.launch.accelerators import Accelerator
from trainer.launch.checks import Check, failed, unknown
from trainer.launch.google import Google, PermissionsResponse
from trainer.launch.responses import Response
from trainer.launch.vertex import Project

_SERVICES = ("aiplatform", "cloudscheduler", "logging")
_PERMISSIONS = (
    "aiplatform.customJobs.create", "aiplatform.customJobs.get", "aiplatform.customJobs.list",
    "aiplatform.customJobs.cancel", "logging.logEntries.list",
)  # fmt: skip
_GRANT_ROLES = "Ask the owner of the project for roles/aiplatform.user and roles/logging.viewer."
_ALL_REGIONS = "GPUS_ALL_REGIONS"
_ACT_AS = "iam.serviceAccounts.actAs"


class _Service(Response):
    state: str = ""


def _require_int(value: str | int) -> str | int:
    int(value)
    return value


class _QuotaBucket(Response):
    effective_limit: Annotated[str | int, AfterValidator(_require_int)] = 0
    dimensions: dict[str, str] = Field(default_factory=dict)


class _QuotaLimit(Response):
    quota_buckets: tuple[_QuotaBucket, ...] = ()


class _QuotaMetric(Response):
    consumer_quota_limits: tuple[_QuotaLimit, ...] = ()


class _Quota(Response):
    metric: str = ""
    limit: StrictFloat
    usage: StrictFloat = 0


class _Quotas(Response):
    quotas: tuple[_Quota, ...] = ()


def check_project(project: Project, google: Google) -> Iterator[Check]:
    """Yield checks of the project; stop if the project cannot be read."""
    parent = f"projects/{project.project}"
    try:
        for service in _SERVICES:
            url = f"{project.at('serviceusage')}/v1/{parent}/services/{service}.googleapis.com"
            yield _check_enabled(service, google.get(url, _Service), project.project)
        url = f"{project.at('cloudresourcemanager')}/v1/{parent}:testIamPermissions"
        response = google.post(url, {"permissions": list(_PERMISSIONS)}, PermissionsResponse)
        yield _check_permissions("permissions", _PERMISSIONS, response, _GRANT_ROLES)
        google.get(f"{project.url}/{project.parent}/customJobs", pageSize="1")
        yield Check(f"region {project.region}", "ok", "Vertex AI responds")
        if project.service_account is not None:
            yield _check_account(project, google)
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
        response = google.find(url, _QuotaMetric) or {}
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
    quotas: list[dict[str, Any]] = google.get(url, _Quotas).get("quotas", [])
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


def _check_permissions(name: str, required: tuple[str, ...], response: dict[str, Any], remedy: str) -> Check:
    missing = [permission for permission in required if permission not in response.get("permissions", ())]
    if missing:
        return Check(name, "wrong", f"you do not have {', '.join(missing)}", remedy)
    return Check(name, "ok", f"you have {', '.join(required)}")


def _check_account(project: Project, google: Google) -> Check:
    email = project.service_account
    url = f"{project.at('iam')}/v1/projects/{project.project}/serviceAccounts/{email}:testIamPermissions"
    response = google.post(url, {"permissions": [_ACT_AS]}, PermissionsResponse)
    remedy = f"Ask the owner of {email} for roles/iam.serviceAccountUser on it."
    return _check_permissions(f"account {email}", (_ACT_AS,), response, remedy)
