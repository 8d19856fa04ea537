"""Jobs on Vertex AI: sent, looked at, ended.

In: a plan, or the name of what was sent. Out: the job there, its state in words, what it says.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from trainer.exits import TemporaryError, UsageError
from trainer.launch.google import Google
from trainer.launch.plan import SPEC, Plan
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
_PAGE = 1000
_OF_JOB = 'resource.type="ml_job" AND resource.labels.job_id'


class VertexJobs:
    """Those of one project in one region."""

    def __init__(self, project: Project, google: Google) -> None:
        self.project, self._google = project, google

    def create(self, plan: Plan) -> str:
        """Send `plan`, and return the resource's name. Raises UsageError, TemporaryError."""
        if plan.schedule is None:
            url = f"{self.project.url}/{self.project.parent}/customJobs"
            return str(self._google.post(url, custom_job(plan, self.project))["name"])
        body = scheduler_job(plan, self.project)
        url = f"{self.project.scheduler_url}/{self.project.parent}/jobs"
        return str(self._google.post(url, body)["name"])

    def state(self, name: str, now: datetime) -> State:
        """Return how the newest job of this name goes."""
        job = self.find(name)
        state = str(job.get("state", ""))
        word = _WORDS.get(state, "failed" if "FAIL" in state else state.removeprefix("JOB_STATE_").lower())
        lines = [line for line in (_reason(job),) if line]
        if word == "waiting" and (said := self._service_word(job)):
            lines.append(said)
        if state == "JOB_STATE_EXPIRED":
            lines.append("it took longer than its deadline")
        return State(name, word, took(job.get("startTime"), job.get("endTime"), now), tuple(lines))

    def spec_text(self, name: str) -> str | None:
        """Return the spec that the newest job of this name was sent with."""
        given = self.find(name)["jobSpec"]["workerPoolSpecs"][0]["containerSpec"].get("env", [])
        return next((each.get("value") for each in given if each["name"] == SPEC), None)

    def find(self, name: str) -> dict[str, Any]:
        """Return the newest job of this name. Raises UsageError if there is none."""
        found = self._list(f'displayName="{name}"')
        if not found:
            raise UsageError(f"There is no such job; `trainer list vertex` shows them. Received: {name}")
        return max(found, key=lambda job: str(job.get("createTime", "")))

    def cancel(self, name: str) -> str:
        """Let the newest job of this name end, or take its schedule away; return what it was."""
        try:
            job = self.find(name)
        except UsageError:
            self._google.delete(f"{self.project.scheduler_url}/{self.project.parent}/jobs/{name}")
            return "schedule"
        self._google.post(f"{self.project.url}/{job['name']}:cancel", {})
        return "job"

    def overview(self) -> list[str]:
        """Return the names of all that were sent, the newest first."""
        jobs = self._list(" AND ".join(f"labels.{key}={value}" for key, value in LABELS.items()))
        jobs.sort(key=lambda job: str(job.get("createTime", "")), reverse=True)
        return list(dict.fromkeys(str(job["displayName"]) for job in jobs))

    def lines(self, name: str, worker: int, is_following: bool) -> Iterator[str]:
        """Yield what a worker of a job says; with `is_following` until the job has ended."""
        number = str(self.find(name)["name"]).rpartition("/")[2]
        task = "workerpool0-0" if worker == 0 else f"workerpool1-{worker - 1}"
        chosen = f'{_OF_JOB}="{number}" AND resource.labels.task_name="{task}"'
        since, seen = "1970-01-01T00:00:00Z", set[str]()
        while True:
            ended = not is_following or "endTime" in self.find(name)
            for entry in self._entries(f'{chosen} AND timestamp>="{since}"'):
                if entry["insertId"] not in seen:
                    seen.add(entry["insertId"])
                    since = entry["timestamp"]
                    yield _text(entry)
            if ended:
                return
            time.sleep(_LOOK_SECONDS)

    def _service_word(self, job: dict[str, Any]) -> str:
        """Return what Vertex AI itself said last of a job, as why it waits; empty if nobody may know."""
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
    """Return what an entry of a log says."""
    return str(entry.get("textPayload") or entry.get("jsonPayload", {}).get("message", ""))


def _reason(job: dict[str, Any]) -> str:
    """Return why a job failed or waits, with its exit code in words."""
    message = str(job.get("error", {}).get("message", ""))
    code = re.search(r"non-zero status of (\d+)", message)
    return f"{explain_code(int(code[1]))} ({message})" if code else message
