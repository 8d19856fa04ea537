"""Jobs on Vertex AI: creation, state, logs and cancellation."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from trainer.errors import TemporaryError, UsageError
from trainer.launch.google import Google, NothingThereError
from trainer.launch.plan import RUN_NAME, SPEC, JobPlan
from trainer.launch.state import State, explain_code, took
from trainer.launch.vertex import LABELS, Project, custom_job, scheduler_job

_WORDS = {
    "JOB_STATE_QUEUED": "waiting",
    "JOB_STATE_PENDING": "waiting",
    "JOB_STATE_RUNNING": "running",
    "JOB_STATE_UPDATING": "running",
    "JOB_STATE_PAUSED": "suspended",
    "JOB_STATE_SUCCEEDED": "finished",
    "JOB_STATE_CANCELLING": "being ended",
    "JOB_STATE_CANCELLED": "ended on request",
    "JOB_STATE_EXPIRED": "failed",
}
_LOOK_SECONDS = 5.0
_LAST_LOOKS = 3
_PAGE = 1000
_ENDED = (
    "JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
)  # fmt: skip
_OF_JOB = 'resource.type="ml_job" AND resource.labels.job_id'


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
            return str(self._google.post(f"{self._schedules}", body)["name"])
        if (there := self._at_work(plan.name)) is not None:
            raise UsageError(
                "A job of this name is at work, on the same run; end it, or give another --run-name.",
                received=f"{there['name']}",
            )
        url = f"{self.project.url}/{self.project.parent}/customJobs"
        try:
            return str(self._google.post(url, custom_job(plan, self.project))["name"])
        except TemporaryError:
            # The job may exist although the response was lost; a retry would create a second one.
            with suppress(UsageError, TemporaryError):
                if (made := self._at_work(plan.name)) is not None:
                    return str(made["name"])
            raise

    @property
    def _schedules(self) -> str:
        return f"{self.project.scheduler_url}/{self.project.parent}/jobs"

    def _at_work(self, name: str) -> dict[str, Any] | None:
        """Return the newest job of this name that has not ended."""
        live = [job for job in self._list(f'displayName="{name}"') if job.get("state") not in _ENDED]
        return max(live, key=lambda job: str(job.get("createTime", ""))) if live else None

    def state(self, name: str, now: datetime) -> State:
        """Return the state of the newest job of this name, with the reason if it is waiting."""
        job = self.find(name)
        found = self._state(job, now)
        said = self._service_word(job) if found.word == "waiting" else ""
        return replace(found, lines=(*found.lines, said)) if said else found

    def _state(self, job: dict[str, Any], now: datetime) -> State:
        name = str(job["displayName"])
        state = str(job.get("state", ""))
        word = _WORDS.get(state, "failed" if "FAIL" in state else state.removeprefix("JOB_STATE_").lower())
        lines = [line for line in (_reason(job),) if line]
        if state == "JOB_STATE_EXPIRED":
            lines.append("it took longer than its deadline")
        return State(name, word, took(job.get("startTime"), job.get("endTime"), now), tuple(lines))

    def sent(self, name: str) -> tuple[str | None, str]:
        """Return the spec of the newest job of this name, and the name of its run.

        The run of a schedule's job is named after the numeric job ID.
        """
        job = self.find(name)
        given = job["jobSpec"]["workerPoolSpecs"][0]["containerSpec"].get("env", [])
        told = {each["name"]: each.get("value") for each in given}
        return told.get(SPEC), str(told.get(RUN_NAME) or str(job["name"]).rpartition("/")[2])

    def find(self, name: str) -> dict[str, Any]:
        """Return the newest job of this name. Raises UsageError if there is none."""
        found = self._list(f'displayName="{name}"')
        if not found:
            raise UsageError("There is no such job; `trainer list vertex` shows them.", received=name)
        return max(found, key=lambda job: str(job.get("createTime", "")))

    def cancel(self, name: str) -> str:
        """Delete the schedule of this name and cancel its active jobs; return which of the two there were.

        Raises UsageError if there is neither.
        """
        done = []
        try:
            self._google.delete(f"{self._schedules}/{name}")
            done.append("schedule")
        except NothingThereError:
            pass
        while (job := self._at_work(name)) is not None and job.get("state") != "JOB_STATE_CANCELLING":
            self._google.post(f"{self.project.url}/{job['name']}:cancel", {})
            done.append("job")
        if not done:
            raise UsageError("There is no such job at work; `trainer list vertex` shows them.", received=name)
        return ", ".join(dict.fromkeys(done))

    def overview(self, now: datetime) -> list[str]:
        """Return a line for every schedule, then one for every job name with the state of its newest job."""
        jobs = self._list(" AND ".join(f"labels.{key}={value}" for key, value in LABELS.items()))
        jobs.sort(key=lambda job: str(job.get("createTime", "")), reverse=True)
        newest = {str(job["displayName"]): job for job in reversed(jobs)}
        return [*self._coming(), *(self._state(newest[name], now).text()[0] for name in reversed(newest))]

    def _coming(self) -> Iterator[str]:
        """Yield a line for every schedule that posts jobs; nothing without permission to list them."""
        try:
            found = self._google.get(self._schedules).get("jobs", [])
        except UsageError:
            return
        for each in found:
            if each.get("httpTarget", {}).get("uri", "").endswith("/customJobs"):
                name, zone = str(each["name"]).rpartition("/")[2], each.get("timeZone", "Etc/UTC")
                yield f"{name}  at {each['schedule']} ({zone})"

    def lines(self, name: str, worker: int, is_following: bool) -> Iterator[str]:
        """Yield the log of a worker; with `is_following` until the job has ended."""
        number = str(self.find(name)["name"]).rpartition("/")[2]
        task = "workerpool0-0" if worker == 0 else f"workerpool1-{worker - 1}"
        chosen = f'{_OF_JOB}="{number}" AND resource.labels.task_name="{task}"'
        since, seen = "1970-01-01T00:00:00Z", set[str]()
        looks = _LAST_LOOKS  # the last log entries arrive some time after the job's end
        while True:
            ended = not is_following
            if is_following and "endTime" in self.find(name):
                looks -= 1
                ended = looks <= 0
            for entry in self._entries(f'{chosen} AND timestamp>="{since}"'):
                if entry["insertId"] not in seen:
                    seen.add(entry["insertId"])
                    since = entry["timestamp"]
                    yield _text(entry)
            if ended:
                return
            time.sleep(_LOOK_SECONDS)

    def _service_word(self, job: dict[str, Any]) -> str:
        """Return Vertex AI's own last log message about a job, or an empty string if there is none."""
        number = str(job["name"]).rpartition("/")[2]
        chosen = f'{_OF_JOB}="{number}" AND resource.labels.task_name="service"'
        try:
            *_, last = self._entries(chosen)
        except (UsageError, TemporaryError, ValueError):
            return ""
        return _text(last)

    def _entries(self, chosen: str) -> Iterator[dict[str, Any]]:
        body: dict[str, Any] = {
            "resourceNames": [f"projects/{self.project.project}"],
            "filter": chosen,
            "orderBy": "timestamp asc",
            "pageSize": _PAGE,
        }
        while True:
            page = self._google.post(f"{self.project.logging_url}/entries:list", body)
            yield from page.get("entries", [])
            if not page.get("nextPageToken"):
                return
            body["pageToken"] = page["nextPageToken"]

    def _list(self, chosen: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            more = {"pageToken": token} if token else {}
            page = self._google.get(
                f"{self.project.url}/{self.project.parent}/customJobs", filter=chosen, **more
            )
            found += page.get("customJobs", [])
            token = page.get("nextPageToken", "")
            if not token:
                return found


def _text(entry: dict[str, Any]) -> str:
    """Return the text of a log entry."""
    return str(entry.get("textPayload") or entry.get("jsonPayload", {}).get("message", ""))


def _reason(job: dict[str, Any]) -> str:
    """Return why a job failed or waits, with the meaning of its exit code."""
    message = str(job.get("error", {}).get("message", ""))
    code = re.search(r"non-zero status of (\d+)", message)
    return f"{explain_code(int(code[1]))} ({message})" if code else message
