"""A plan to a CustomJob of Vertex AI, or to a job of Cloud Scheduler that posts one again and again.

In: a `Plan` and what is to be known of the project. Out: the bodies of the requests, as plain values.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

from trainer import __version__
from trainer.exits import UsageError
from trainer.launch.plan import RUN_NAME, SPEC, Plan

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LABELS = {"app": "trainer"}
_EMAIL = r"[a-z0-9][a-z0-9._-]*@[a-z0-9][a-z0-9.-]*"
_SERVER = r"https?://[^\s/@?#]+(/[^\s?#]*)?"
_DISK = {"bootDiskSizeGb": 100}
_RETRIES = {"maxRetryDuration": "0s"}
"""Of the schedule's request: one that is sent twice would be two jobs."""


@dataclass(frozen=True)
class Project:
    """Where on Google Cloud."""

    project: str
    region: str
    service_account: str | None = None
    """Of the job; Vertex AI's own without one."""
    endpoint: str | None = None
    """In place of Google's own, for all that is asked."""

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be a name: both become parts of addresses."""
        for what, name, pattern in (
            ("project's ID has small letters, digits and -", self.project, r"[a-z0-9][a-z0-9.:-]*"),
            ("region is called as europe-west4", self.region, r"[a-z]+-[a-z]+[0-9]+"),
            (
                "service account is called as NAME@PROJECT.iam.gserviceaccount.com",
                self.service_account,
                _EMAIL,
            ),
            ("server for --endpoint is written as https://HOST", self.endpoint, _SERVER),
        ):
            if name is not None and not re.fullmatch(pattern, name):
                raise UsageError(f"A {what}. Received: {name!r}")

    @property
    def parent(self) -> str:
        """The resource that jobs are in."""
        return f"projects/{self.project}/locations/{self.region}"

    def at(self, service: str) -> str:
        """Return the address of one of Google Cloud's interfaces."""
        return self.endpoint or f"https://{service}.googleapis.com"

    @property
    def url(self) -> str:
        """Of Vertex AI's REST interface, with its version."""
        return f"{self.at(f'{self.region}-aiplatform')}/v1"

    @property
    def scheduler_url(self) -> str:
        """Of Cloud Scheduler's."""
        return f"{self.at('cloudscheduler')}/v1"

    @property
    def logging_url(self) -> str:
        """Of Cloud Logging's."""
        return f"{self.at('logging')}/v2"


def custom_job(plan: Plan, project: Project) -> dict[str, Any]:
    """Return the CustomJob of `plan`. Raises UsageError for what Vertex AI doesn't offer."""
    first = _pool(plan, 1)
    rest = [_pool(plan, plan.workers - 1)] if plan.workers > 1 else []
    strategy = "SPOT" if plan.is_spot else "FLEX_START" if plan.is_flexible else "STANDARD"
    scheduling = {
        "timeout": f"{plan.deadline_seconds}s",
        # When one of several workers is gone all end, and come back together.
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


def scheduler_job(plan: Plan, project: Project) -> dict[str, Any]:
    """Return the job of Cloud Scheduler that posts the CustomJob of `plan` at its times."""
    if project.service_account is None:
        raise UsageError(
            "A schedule needs an account that posts the job each time; --service-account names it. "
            f"Received: --schedule {plan.schedule!r}"
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


def _pool(plan: Plan, replicas: int) -> dict[str, Any]:
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


def _environment(plan: Plan) -> dict[str, str]:
    # The jobs of a schedule are posted with one body: there the run's name is that of Vertex AI's job.
    return {SPEC: plan.spec_text, **({} if plan.schedule else {RUN_NAME: plan.name})}


def _machine(plan: Plan) -> dict[str, Any]:
    accelerator = plan.accelerator
    if accelerator.vertex is None:
        raise UsageError(
            "Vertex AI doesn't offer this accelerator for jobs; `trainer submit gke` may. "
            f"Received: {accelerator}"
        )
    machine: dict[str, Any] = {"machineType": accelerator.machine}
    if accelerator.kind == "gpu":
        machine |= {"acceleratorType": accelerator.vertex, "acceleratorCount": accelerator.count}
    if accelerator.kind == "tpu":
        machine |= {"tpuTopology": accelerator.topology}
    return machine
