"""State of a Kubernetes Job: one word, its reason, and a line for each pod that needs attention."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from trainer.errors import EXIT_CODES

_PULLING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_REASONS = {
    "DeadlineExceeded": "it took longer than its deadline",
    "BackoffLimitExceeded": "it failed too often",
    "PodFailurePolicy": "it ended in a way that a retry does not fix",
}
_MINUTE_SECONDS = 60
JOB_LABEL = "batch.kubernetes.io/job-name"
"""Label of the pods of a job."""
OURS = ("app.kubernetes.io/managed-by", "trainer")
"""Label of all objects that this program creates in a cluster."""
CONTROLLER_LABEL = "batch.kubernetes.io/controller-uid"
"""Label of the pods of a job, with the job's UID."""
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
"""Label of the jobs of a JobSet and of their pods."""
INDEX = "batch.kubernetes.io/job-completion-index"
"""Annotation of the pods of an Indexed Job."""
CONTAINER = "trainer"
_UNKNOWN_CODE, _OUT_OF_MEMORY_CODE = 1, 137
_FAILED_POD = re.compile(
    r"Container \S+ for pod [^\s/]+/(?P<pod>\S+) failed with exit code (?P<code>\d+) matching "
)
"""Message of the job condition that the job controller sets for a pod failure policy."""


@dataclass(frozen=True)
class State:
    """State of one job."""

    name: str
    word: str
    """waiting, running, restarting, finished, failed or suspended; Docker and Vertex AI have others."""
    about: str
    """Details about the job as a whole."""
    lines: tuple[str, ...]
    """Details about its pods."""
    exit_code: int | None = None
    """Exit code of an ended Kubernetes job: 0, or that of the failed pod, 1 if unknown. Otherwise None."""

    def text(self) -> list[str]:
        """Return the state as lines for display."""
        head = f"{self.name}  {self.word}{f', {self.about}' if self.about else ''}"
        return [head, *(f"  {line}" for line in self.lines)]


def state_of(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], now: datetime) -> State:
    """Return the state of the Kubernetes `job` with its `pods`."""
    status, spec = job.get("status", {}), job.get("spec", {})
    name = job["metadata"].get("labels", {}).get(JOBSET_LABEL) or job["metadata"]["name"]
    time = took(status.get("startTime"), status.get("completionTime"), now)
    conditions = true_conditions(job)
    newest, wanted = newest_pods(pods), int(spec.get("parallelism", 1))
    lines = tuple(line for pod in newest if (line := pod_line(pod, max(wanted, len(newest)) > 1)))
    if "Complete" in conditions:
        return State(name, "finished", time, (), 0)
    if (failed := conditions.get("Failed") or conditions.get("FailureTarget")) is not None:
        code = _failed_code(failed, pods) if "Failed" in conditions else None
        return State(name, "failed", _why(failed), (*_line_of_lost_pod(job, failed, pods), *lines), code)
    if "Suspended" in conditions or spec.get("suspend"):
        return State(name, "suspended", "spec.suspend is set", lines)
    if ready := int(status.get("ready", 0)):
        many = f"{ready} of {wanted} workers ready, " if wanted > 1 else ""
        return State(name, "running", f"{many}{time}", lines)
    return State(name, "waiting", time, lines)


def true_conditions(value: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the conditions of an object that are true, by type."""
    conditions = value.get("status", {}).get("conditions", [])
    return {each["type"]: each for each in conditions if each.get("status") == "True"}


def _failed_code(failed: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> int:
    """Return the exit code that failed the job: from the policy's message, else of the last failed pod."""
    if (found := _FAILED_POD.match(str(failed.get("message", "")))) is not None:
        return int(found["code"])
    ends = [
        (EXIT_CODES.get(code, ("", "Count"))[1] != "Ignore", str(ended.get("finishedAt", "")), code)
        for pod in pods
        if (ended := container_state(pod).get("terminated")) and (code := code_of(ended))
    ]
    return max(ends)[-1] if ends else _UNKNOWN_CODE


def _line_of_lost_pod(
    job: Mapping[str, Any], failed: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the line of the pod that the job's condition names, if it is no longer among `pods`."""
    found = _FAILED_POD.match(str(failed.get("message", "")))
    if found is None or found["pod"] in (pod["metadata"]["name"] for pod in pods):
        return ()
    index = re.match(rf"{re.escape(job['metadata']['name'])}-(\d+)-", found["pod"])
    worker = f"worker {index[1]}: " if index and int(job.get("spec", {}).get("parallelism", 1)) > 1 else ""
    return (f"{worker}{explain_code(int(found['code']))}",)


def container_state(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of a pod's container: waiting, running or terminated; empty if it has none yet."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    ours = [each for each in statuses if each.get("name") == CONTAINER] or statuses
    return dict(ours[0].get("state", {})) if ours else {}


def code_of(ended: Mapping[str, Any]) -> int:
    """Return the exit code of a terminated container, 137 if it was OOM-killed."""
    return _OUT_OF_MEMORY_CODE if ended.get("reason") == "OOMKilled" else int(ended.get("exitCode", 0))


def explain_code(code: int) -> str:
    """Return the meaning of an exit code, from the table of exit codes."""
    if code in EXIT_CODES:
        return f"exit code {code}: {EXIT_CODES[code][0]}"
    signal = f", ended by signal {code - 128}" if 128 < code < 160 else ""
    return f"exit code {code}{signal}"


def newest_pods(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the newest pod of each worker, in worker order."""
    last: dict[int, Mapping[str, Any]] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", ""))):
        last[index_of(pod)] = pod
    return [last[index] for index in sorted(last)]


def index_of(pod: Mapping[str, Any]) -> int:
    """Return the worker index of a pod."""
    return int(pod["metadata"].get("annotations", {}).get(INDEX, 0))


def pod_line(pod: Mapping[str, Any], is_one_of_many: bool) -> str:
    """Return why a pod is pending or how it ended; empty if it runs."""
    # A preemption or an eviction ends the container, too, so it takes precedence.
    said = _of_machine(pod) or _of_container(container_state(pod)) or _of_schedule(pod)
    return f"worker {index_of(pod)}: {said}" if said and is_one_of_many else said


def _of_container(state: Mapping[str, Any]) -> str:
    if (waiting := state.get("waiting")) is not None:
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _PULLING:
            return f"the image can't be pulled: see its name, and whether the nodes may read it ({message})"
        if reason in ("ContainerCreating", "PodInitializing", ""):
            return "the container is being made"
        return f"{reason} ({message})"
    if (ended := state.get("terminated")) is not None:
        if ended.get("reason") == "OOMKilled":
            return "out of memory: a smaller batch, or a machine with more"
        return explain_code(code) if (code := code_of(ended)) else ""
    return ""


def _of_machine(pod: Mapping[str, Any]) -> str:
    status = pod.get("status", {})
    for each in status.get("conditions", []):
        if each.get("type") == "DisruptionTarget" and each.get("status") == "True":
            why = status.get("message") or each.get("reason", "preempted")
            return f"its machine was taken away ({why}); it starts again elsewhere"
    if status.get("phase") == "Failed" and status.get("reason"):
        return f"it was ended from outside: {status['reason']} ({status.get('message', '')})"
    return ""


def _of_schedule(pod: Mapping[str, Any]) -> str:
    for each in pod.get("status", {}).get("conditions", []):
        if each.get("type") == "PodScheduled" and each.get("reason") == "Unschedulable":
            return f"no machine takes it: {each.get('message', '')}"
    return ""


def _why(condition: Mapping[str, Any]) -> str:
    reason = condition.get("reason", "")
    return _REASONS.get(reason, reason or "for no reason that is told")


def took(started: str | None, ended: str | None, now: datetime) -> str:
    """Return the elapsed time in minutes as text; the times are RFC 3339 strings in UTC."""
    if started is None:
        return "not started yet"
    seconds = ((_time(ended) if ended else now) - _time(started)).total_seconds()
    return f"{'took' if ended else 'for'} {round(seconds / _MINUTE_SECONDS)} min"


def _time(text: str) -> datetime:
    """Parse an RFC 3339 time in UTC; fractions of a second are dropped."""
    return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
