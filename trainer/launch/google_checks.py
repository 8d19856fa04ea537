"""Preflight checks of a Google Cloud project: enabled APIs, permissions, quota."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from trainer.errors import TrainerError
from trainer.launch.accelerators import Accelerator
from trainer.launch.checks import Check, failed, unknown
from trainer.launch.google import Google
from trainer.launch.vertex import Project

_SERVICES = ("aiplatform", "cloudscheduler", "logging")
_RIGHTS = (
    "aiplatform.customJobs.create", "aiplatform.customJobs.get", "aiplatform.customJobs.list",
    "aiplatform.customJobs.cancel", "logging.logEntries.list",
)  # fmt: skip
_ROLES = "whoever owns the project can give you roles/aiplatform.user and roles/logging.viewer"
_OF_ALL_REGIONS = "GPUS_ALL_REGIONS"
_ACT_AS = "iam.serviceAccounts.actAs"


def check_project(project: Project, google: Google) -> Iterator[Check]:
    """Yield checks of the project; stop if the project cannot be read."""
    where = f"projects/{project.project}"
    try:
        for service in _SERVICES:
            url = f"{project.at('serviceusage')}/v1/{where}/services/{service}.googleapis.com"
            yield _enabled(service, google.get(url), project.project)
        asked = {"permissions": list(_RIGHTS)}
        url = f"{project.at('cloudresourcemanager')}/v1/{where}:testIamPermissions"
        yield _granted("rights", _RIGHTS, google.post(url, asked), _ROLES)
        google.get(f"{project.url}/{project.parent}/customJobs", pageSize="1")
        yield Check(f"region {project.region}", "ok", "Vertex AI answers there")
        if project.service_account is not None:
            yield _account(project, google)
    except TrainerError as error:
        yield failed(f"project {project.project}", error)


def check_vertex_quota(
    project: Project, google: Google, wanted: Accelerator, many: int, is_spot: bool
) -> Check:
    """Check that the region's Vertex AI quota covers `many` accelerators."""
    metric = f"custom_model_training_{'preemptible_' if is_spot else ''}{wanted.quota}"
    if not wanted.quota:
        return Check("quota", "unknown", f"it isn't known what Vertex AI calls it for {wanted.name}")
    name = quote(f"aiplatform.googleapis.com/{metric}", safe="")
    service = f"projects/{project.project}/services/aiplatform.googleapis.com"
    url = f"{project.at('serviceusage')}/v1beta1/{service}/consumerQuotaMetrics/{name}"
    try:
        found = google.find(url)
    except TrainerError as error:
        return unknown("quota", error)
    limits = [
        int(bucket.get("effectiveLimit", 0))
        for limit in (found or {}).get("consumerQuotaLimits", ())
        for bucket in limit.get("quotaBuckets", ())
        if bucket.get("dimensions", {}).get("region", project.region) == project.region
    ]
    return _enough(metric, limits[-1] if limits else None, many, f"in {project.region}")


def check_compute_quota(
    project: Project, google: Google, wanted: Accelerator, many: int, is_spot: bool
) -> Iterator[Check]:
    """Check the Compute Engine quotas, which apply to GKE nodes.

    These are the quota of the region and, for GPUs, the quota of all regions together if the project has one.
    """
    metric = f"{'PREEMPTIBLE_' if is_spot else ''}{wanted.compute_quota}"
    if not wanted.compute_quota:
        yield Check("quota", "unknown", f"Compute Engine's regions tell of none for {wanted.name}")
        return
    whole = f"{project.at('compute')}/compute/v1/projects/{project.project}"
    try:
        free = _free(google, f"{whole}/regions/{project.region}", metric)
        yield _enough(metric, free, many, f"in {project.region}")
        free = _free(google, whole, _OF_ALL_REGIONS) if wanted.kind == "gpu" else None
        if free is not None:
            yield _enough(_OF_ALL_REGIONS, free, many, "in all regions")
    except TrainerError as error:
        yield unknown("quota", error)


def _free(google: Google, url: str, metric: str) -> int | None:
    """Return the unused quota of a Compute Engine resource, None if it does not list the metric."""
    quotas: list[dict[str, Any]] = google.get(url).get("quotas", [])
    free = [int(each["limit"] - each.get("usage", 0)) for each in quotas if each.get("metric") == metric]
    return free[0] if free else None


def _enough(metric: str, limit: int | None, many: int, where: str) -> Check:
    name = f"quota {where}"
    if limit is None:
        return Check(name, "unknown", f"none is told for {metric}")
    if limit < 0 or limit >= many:  # -1 means unlimited
        return Check(name, "ok", f"{metric}: {limit if limit >= 0 else 'no limit'}, {many} asked for")
    remedy = f"ask for more of {metric} on the console's page of quotas, or take another region"
    return Check(name, "wrong", f"{limit} of {metric}, {many} asked for", remedy)


def _enabled(service: str, found: dict[str, Any], project: str) -> Check:
    name = f"interface {service}"
    if found.get("state") == "ENABLED":
        return Check(name, "ok", "it is enabled")
    remedy = f"`gcloud services enable {service}.googleapis.com --project {project}` enables it"
    return Check(name, "wrong", "it is not enabled", remedy)


def _granted(name: str, asked: tuple[str, ...], found: dict[str, Any], remedy: str) -> Check:
    lacking = [each for each in asked if each not in found.get("permissions", ())]
    if lacking:
        return Check(name, "wrong", f"you lack {', '.join(lacking)}", remedy)
    return Check(name, "ok", f"you have what is needed, as {asked[0]}")


def _account(project: Project, google: Google) -> Check:
    email = project.service_account
    url = f"{project.at('iam')}/v1/projects/{project.project}/serviceAccounts/{email}:testIamPermissions"
    found = google.post(url, {"permissions": [_ACT_AS]})
    remedy = f"whoever owns {email} can give you roles/iam.serviceAccountUser on it"
    return _granted(f"account {email}", (_ACT_AS,), found, remedy)
