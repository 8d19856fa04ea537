"""Jobs on Vertex AI: request bodies, creation, state, logs and cancellation.

The body is a CustomJob of a `JobPlan`, or a Cloud Scheduler job that posts one.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from trainer import __version__
from trainer.errors import TemporaryError, UsageError
from trainer.launch.google import Google, NotFoundError
from trainer.launch.kubernetes import secret_environment
from trainer.launch.plan import RUN_NAME, SPEC, JobPlan
from trainer.launch.responses import Response, Time
from trainer.launch.state import State, describe_duration, describe_exit_code

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


_WORDS = {
    "JOB_STATE_QUEUED": "waiting",
    "JOB_STATE_PENDING": "waiting",
    "JOB_STATE_RUNNING": "running",
    "JOB_STATE_UPDATING": "running",
    "JOB_STATE_PAUSED": "suspended",
    "JOB_STATE_SUCCEEDED": "finished",
    "JOB_STATE_CANCELLING": "cancelling",
    "JOB_STATE_CANCELLED": "cancelled",
    "JOB_STATE_EXPIRED": "failed",
}
_POLL_SECONDS = 5.0
_LAST_POLLS = 3
_PAGE_SIZE = 1000
_ENDED = (
    "JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
)  # fmt: skip
_JOB_FILTER = 'resource.type="ml_job" AND resource.labels.job_id'
_NO_JOB = ("There is no job of this name.", "List the jobs with `trainer list vertex`.")


class _Named(Response):
    name: str


class _EnvironmentVariable(Response):
    name: str
    value: str | None = None


class _ContainerSpec(Response):
    env: tuple[_EnvironmentVariable, ...] = ()


class _WorkerPool(Response):
    container_spec: _ContainerSpec = _ContainerSpec()


class _CustomJobSpec(Response):
    worker_pool_specs: tuple[_WorkerPool, ...] = ()


class _JobError(Response):
    message: str = ""


class _CustomJob(_Named):
    display_name: str
    state: str = ""
    create_time: str = ""
    start_time: Time | None = None
    end_time: Time | None = None
    job_spec: _CustomJobSpec = _CustomJobSpec()
    error: _JobError = _JobError()


class _CustomJobs(Response):
    custom_jobs: tuple[_CustomJob, ...] = ()
    next_page_token: str = ""


class _Target(Response):
    uri: str = ""


class _SchedulerJob(_Named):
    schedule: str = ""
    time_zone: str = "Etc/UTC"
    http_target: _Target = _Target()


class _SchedulerJobs(Response):
    jobs: tuple[_SchedulerJob, ...] = ()


class _JsonPayload(Response):
    message: Any = ""


class _LogEntry(Response):
    insert_id: str
    timestamp: str
    text_payload: str = ""
    json_payload: _JsonPayload = _JsonPayload()


class _LogEntries(Response):
    entries: tuple[_LogEntry, ...] = ()
    next_page_token: str = ""


class VertexJobs:
    """Jobs of one project in one region."""

    def __init__(self, project: Project, google: Google) -> None:
        self.project, self._google = project, google

    def create(self, plan: JobPlan) -> str:
        """Create the job or schedule of `plan` and return its resource name.

        Raises UsageError, also if an active job has the same name, and TemporaryError.
        """
        if plan.schedule is not None:
            body = scheduler_job(plan, self.project)
            return str(self._google.post(f"{self._schedules}", body, _Named)["name"])
        if (active := self._active(plan.name)) is not None:
            raise UsageError(
                "A job of this name is active, and writes to the same run.",
                f"Cancel it with `trainer cancel vertex {plan.name}`, or choose another --run-name.",
                active["name"],
            )
        url = f"{self.project.url}/{self.project.parent}/customJobs"
        try:
            return str(self._google.post(url, custom_job(plan, self.project), _Named)["name"])
        except TemporaryError:
            # The job may exist although the response was lost; a retry would create a second one.
            with suppress(UsageError, TemporaryError):
                if (created := self._active(plan.name)) is not None:
                    return str(created["name"])
            raise

    @property
    def _schedules(self) -> str:
        return f"{self.project.scheduler_url}/{self.project.parent}/jobs"

    def _active(self, name: str) -> dict[str, Any] | None:
        """Return the newest job of this name that has not ended."""
        active = [job for job in self._list(f'displayName="{name}"') if job.get("state") not in _ENDED]
        return max(active, key=_create_time) if active else None

    def state(self, name: str, now: datetime) -> State:
        """Return the state of the newest job of this name, with the reason if it is waiting."""
        job = self.find(name)
        state = self._state(job, now)
        message = self._service_message(job) if state.word == "waiting" else ""
        return replace(state, lines=(*state.lines, message)) if message else state

    def _state(self, job: dict[str, Any], now: datetime) -> State:
        name = str(job["displayName"])
        state = str(job.get("state", ""))
        word = _WORDS.get(state, "failed" if "FAIL" in state else state.removeprefix("JOB_STATE_").lower())
        lines = [line for line in (_reason(job),) if line]
        if state == "JOB_STATE_EXPIRED":
            lines.append("its deadline was exceeded")
        duration = describe_duration(job.get("startTime"), job.get("endTime"), now)
        return State(name, word, duration, tuple(lines))

    def run_of(self, name: str) -> tuple[str | None, str]:
        """Return the spec of the newest job of this name, and the name of its run.

        The run of a schedule's job is named after the numeric job ID.
        """
        job = self.find(name)
        pools = job.get("jobSpec", {}).get("workerPoolSpecs") or [{}]
        variables = pools[0].get("containerSpec", {}).get("env", [])
        values = {variable["name"]: variable.get("value") for variable in variables}
        return values.get(SPEC), str(values.get(RUN_NAME) or str(job["name"]).rpartition("/")[2])

    def find(self, name: str) -> dict[str, Any]:
        """Return the newest job of this name. Raises UsageError if there is none."""
        jobs = self._list(f'displayName="{name}"')
        if not jobs:
            raise UsageError(*_NO_JOB, name)
        return max(jobs, key=_create_time)

    def cancel(self, name: str) -> str:
        """Delete the schedule of this name and cancel its active jobs; return which of the two there were.

        Raises UsageError if there is neither.
        """
        cancelled = []
        try:
            self._google.delete(f"{self._schedules}/{name}")
            cancelled.append("schedule")
        except NotFoundError:
            pass
        while (job := self._active(name)) is not None and job.get("state") != "JOB_STATE_CANCELLING":
            self._google.post(f"{self.project.url}/{job['name']}:cancel", {})
            cancelled.append("job")
        if not cancelled:
            raise UsageError("There is no active job of this name.", _NO_JOB[1], name)
        return ", ".join(dict.fromkeys(cancelled))

    def overview(self, now: datetime) -> list[str]:
        """Return a line for every schedule, then one for every job name with the state of its newest job."""
        jobs = self._list(" AND ".join(f"labels.{key}={value}" for key, value in LABELS.items()))
        jobs.sort(key=_create_time, reverse=True)
        newest = {str(job["displayName"]): job for job in reversed(jobs)}
        states = (self._state(newest[name], now).text()[0] for name in reversed(newest))
        return [*self._schedule_lines(), *states]

    def _schedule_lines(self) -> Iterator[str]:
        """Yield a line for every schedule that posts jobs; nothing without permission to list them."""
        try:
            schedules = self._google.get(self._schedules, _SchedulerJobs).get("jobs", [])
        except UsageError:
            return
        for schedule in schedules:
            if schedule.get("httpTarget", {}).get("uri", "").endswith("/customJobs"):
                name, zone = schedule["name"].rpartition("/")[2], schedule.get("timeZone", "Etc/UTC")
                yield f"{name}  at {schedule.get('schedule')} ({zone})"

    def lines(self, name: str, worker: int, is_following: bool) -> Iterator[str]:
        """Yield the log of a worker; with `is_following` until the job has ended."""
        number = str(self.find(name)["name"]).rpartition("/")[2]
        task = "workerpool0-0" if worker == 0 else f"workerpool1-{worker - 1}"
        task_filter = f'{_JOB_FILTER}="{number}" AND resource.labels.task_name="{task}"'
        since, seen = "1970-01-01T00:00:00Z", set[str]()
        polls_left = _LAST_POLLS  # the last log entries arrive some time after the job's end
        while True:
            is_last = not is_following
            if is_following and "endTime" in self.find(name):
                polls_left -= 1
                is_last = polls_left <= 0
            for entry in self._entries(f'{task_filter} AND timestamp>="{since}"'):
                if entry["insertId"] not in seen:
                    seen.add(entry["insertId"])
                    since = entry["timestamp"]
                    yield _text(entry)
            if is_last:
                return
            time.sleep(_POLL_SECONDS)

    def _service_message(self, job: dict[str, Any]) -> str:
        """Return Vertex AI's own last log message about a job, or an empty string if there is none."""
        number = str(job["name"]).rpartition("/")[2]
        try:
            entries = list(self._entries(f'{_JOB_FILTER}="{number}" AND resource.labels.task_name="service"'))
        except (UsageError, TemporaryError):
            return ""
        return _text(entries[-1]) if entries else ""

    def _entries(self, log_filter: str) -> Iterator[dict[str, Any]]:
        body: dict[str, Any] = {
            "resourceNames": [f"projects/{self.project.project}"],
            "filter": log_filter,
            "orderBy": "timestamp asc",
            "pageSize": _PAGE_SIZE,
        }
        while True:
            page = self._google.post(f"{self.project.logging_url}/entries:list", body, _LogEntries)
            yield from page.get("entries", [])
            if not page.get("nextPageToken"):
                return
            body["pageToken"] = page["nextPageToken"]

    def _list(self, job_filter: str) -> list[dict[str, Any]]:
        url = f"{self.project.url}/{self.project.parent}/customJobs"
        jobs: list[dict[str, Any]] = []
        token = ""
        while True:
            query = {"pageToken": token} if token else {}
            page = self._google.get(url, _CustomJobs, filter=job_filter, **query)
            jobs += page.get("customJobs", [])
            token = page.get("nextPageToken", "")
            if not token:
                return jobs


def _create_time(job: dict[str, Any]) -> str:
    return str(job.get("createTime", ""))


def _text(entry: dict[str, Any]) -> str:
    """Return the text of a log entry."""
    return str(entry.get("textPayload") or entry.get("jsonPayload", {}).get("message", ""))


def _reason(job: dict[str, Any]) -> str:
    """Return why a job failed or waits, with the meaning of its exit code."""
    message = str(job.get("error", {}).get("message", ""))
    code = re.search(r"non-zero status of (\d+)", message)
    return f"{describe_exit_code(int(code[1]))} ({message})" if code else message
