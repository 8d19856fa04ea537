"""Request bodies of Vertex AI: a CustomJob of a `JobPlan`, or a Cloud Scheduler job that posts it."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

from trainer import __version__
from trainer.errors import UsageError
from trainer.launch.group_access import secret_environment
from trainer.launch.plan import RUN_NAME, SPEC, JobPlan

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LABELS = {"app": "trainer"}
_EMAIL = r"[a-z0-9][a-z0-9._-]*@[a-z0-9][a-z0-9.-]*"
_SERVER = r"https?://[^\s/@?#]+(/[^\s?#]*)?"
_DISK = {"bootDiskSizeGb": 100}
_RETRIES = {"maxRetryDuration": "0s"}
"""No retries of the schedule's request: a second request would create a second job."""


@dataclass(frozen=True)
class Project:
    """Project, region and endpoint on Google Cloud."""

    project: str
    region: str
    service_account: str | None = None
    """Service account of the job; None is Vertex AI's default."""
    endpoint: str | None = None
    """Replaces the endpoints of all Google Cloud APIs."""

    def __post_init__(self) -> None:
        """Raise UsageError for an invalid project ID, region, account or endpoint, as URLs use them."""
        for kind, value, pattern, form in (
            ("project ID", self.project, r"[a-z0-9][a-z0-9.:-]*", "lowercase letters, digits and hyphens"),
            ("region", self.region, r"[a-z]+-[a-z]+[0-9]+", "a name such as europe-west4"),
            ("service account", self.service_account, _EMAIL, "NAME@PROJECT.iam.gserviceaccount.com"),
            ("value of --endpoint", self.endpoint, _SERVER, "a URL such as https://HOST"),
        ):
            if value is not None and not re.fullmatch(pattern, value):
                raise UsageError(f"The {kind} is invalid.", f"Use {form}.", f"{value!r}")

    @property
    def parent(self) -> str:
        """Parent resource of the jobs."""
        return f"projects/{self.project}/locations/{self.region}"

    def at(self, service: str) -> str:
        """Return the endpoint of a Google Cloud API."""
        return self.endpoint or f"https://{service}.googleapis.com"

    @property
    def url(self) -> str:
        """URL of the Vertex AI REST API, with its version."""
        return f"{self.at(f'{self.region}-aiplatform')}/v1"

    @property
    def scheduler_url(self) -> str:
        """URL of the Cloud Scheduler REST API, with its version."""
        return f"{self.at('cloudscheduler')}/v1"

    @property
    def logging_url(self) -> str:
        """URL of the Cloud Logging REST API, with its version."""
        return f"{self.at('logging')}/v2"


def custom_job(plan: JobPlan, project: Project) -> dict[str, Any]:
    """Return the CustomJob of `plan`. Raises UsageError for an accelerator that Vertex AI does not offer."""
    first = _pool(plan, 1)
    rest = [_pool(plan, plan.workers - 1)] if plan.workers > 1 else []
    strategy = "SPOT" if plan.is_spot else "FLEX_START" if plan.is_flexible else "STANDARD"
    scheduling = {
        "timeout": f"{plan.deadline_seconds}s",
        # If one of several connected workers fails, all end and restart together.
        "restartJobOnWorkerRestart": plan.is_connected,
        "strategy": strategy,
    }
    job: dict[str, Any] = {
        "workerPoolSpecs": [first, *rest],
        "scheduling": scheduling,
        "baseOutputDirectory": {"outputUriPrefix": plan.spec.output.rstrip("/")},
    }
    if project.service_account is not None:
        job["serviceAccount"] = project.service_account
    labels = LABELS | {"version": __version__.replace(".", "-")}
    return {"displayName": plan.name, "labels": labels, "jobSpec": job}


def scheduler_job(plan: JobPlan, project: Project) -> dict[str, Any]:
    """Return the Cloud Scheduler job that posts the CustomJob of `plan`; UsageError without an account."""
    if project.service_account is None:
        raise UsageError(
            "A schedule requires a service account, which creates the jobs.",
            "Set it with --service-account.",
            f"--schedule {plan.schedule!r}",
        )
    body = json.dumps(custom_job(plan, project)).encode()
    return {
        "name": f"{project.parent}/jobs/{plan.name}",
        "schedule": plan.schedule,
        "timeZone": plan.time_zone,
        "retryConfig": _RETRIES,
        "httpTarget": {
            "uri": f"{project.url}/{project.parent}/customJobs",
            "httpMethod": "POST",
            "headers": {"Content-Type": "application/json"},
            "body": base64.b64encode(body).decode(),
            "oauthToken": {"serviceAccountEmail": project.service_account, "scope": _SCOPE},
        },
    }


def _pool(plan: JobPlan, replicas: int) -> dict[str, Any]:
    return {
        "machineSpec": _machine(plan),
        "replicaCount": str(replicas),
        "diskSpec": _DISK,
        "containerSpec": {
            "imageUri": plan.image,
            "args": plan.arguments,
            "env": [{"name": name, "value": value} for name, value in _environment(plan).items()],
        },
    }


def _environment(plan: JobPlan) -> dict[str, str]:
    # All jobs of a schedule have the same body, so their runs are named after the ID of the Vertex AI job.
    return {
        SPEC: plan.spec_text,
        **({} if plan.schedule else {RUN_NAME: plan.name}),
        **secret_environment(plan),
    }


def _machine(plan: JobPlan) -> dict[str, Any]:
    accelerator = plan.accelerator
    if accelerator.vertex is None:
        raise UsageError(
            "Vertex AI does not offer this accelerator for jobs.",
            "Choose another one, or submit with `trainer submit gke`.",
            accelerator,
        )
    machine: dict[str, Any] = {"machineType": accelerator.machine}
    if accelerator.kind == "gpu":
        machine |= {"acceleratorType": accelerator.vertex, "acceleratorCount": accelerator.count}
    if accelerator.kind == "tpu":
        machine |= {"tpuTopology": accelerator.topology}
    return machine
