"""State of a job as one word with its reason, for all platforms, and its computation for Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from trainer.errors import EXIT_CODES
from trainer.launch.responses import parse_time

Object = Mapping[str, Any]
"""A Kubernetes object."""
_IMAGE_ERRORS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_POLICY_REASON = "it ended with an exit code that is not retried"
_REASONS = {
    "DeadlineExceeded": "its deadline was exceeded",
    "BackoffLimitExceeded": "its retries are exhausted",
    "PodFailurePolicy": _POLICY_REASON,
}
_JOBSET_REASONS = {
    "FailJobSetFailurePolicyAction": _POLICY_REASON,
    "ReachedMaxRestarts": _REASONS["BackoffLimitExceeded"],
    "DeadlineExceeded": _REASONS["DeadlineExceeded"],
}
_FAIL_JOBSET = "FailJobSet"
_IGNORE_MAX_RESTARTS = "IgnoreMaxRestarts"
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
    detail: str
    """Details of the job as a whole."""
    lines: tuple[str, ...]
    """Details of its pods."""
    exit_code: int | None = None
    """Exit code of an ended Kubernetes job: 0, or that of the failed pod, 1 if unknown. Otherwise None."""

    def text(self) -> list[str]:
        """Return the state as lines for display."""
        head = f"{self.name}  {self.word}{f', {self.detail}' if self.detail else ''}"
        return [head, *(f"  {line}" for line in self.lines)]


def job_state(job: Object, pods: Sequence[Object], now: datetime) -> State:
    """Return the state of the Kubernetes `job` with its `pods`."""
    status, spec = job.get("status", {}), job.get("spec", {})
    name = job["metadata"].get("labels", {}).get(JOBSET_LABEL) or job["metadata"]["name"]
    duration = describe_duration(status.get("startTime"), status.get("completionTime"), now)
    conditions = true_conditions(job)
    newest, workers = newest_pods(pods), int(spec.get("parallelism", 1))
    lines = tuple(line for pod in newest if (line := pod_line(pod, max(workers, len(newest)) > 1)))
    if "Complete" in conditions:
        return State(name, "finished", duration, (), 0)
    if (failed := conditions.get("Failed") or conditions.get("FailureTarget")) is not None:
        code = _failed_code(failed, pods) if "Failed" in conditions else None
        lines = (*_line_of_deleted_pod(job, failed, pods), *lines)
        return State(name, "failed", _failure_reason(failed), lines, code)
    if "Suspended" in conditions or spec.get("suspend"):
        return State(name, "suspended", "spec.suspend is set", lines)
    if ready := int(status.get("ready", 0)):
        share = f"{ready} of {workers} workers ready, " if workers > 1 else ""
        return State(name, "running", f"{share}{duration}", lines)
    return State(name, "waiting", duration, lines)


def jobset_state(jobset: Object, job: Object | None, pods: Sequence[Object], now: datetime) -> State:
    """Return the state of `jobset` with its child `job`, None while there is none, and the child's `pods`.

    A failed child job is recreated until the failure policy ends the JobSet.
    """
    name, conditions = jobset["metadata"]["name"], true_conditions(jobset)
    restarts = int(jobset.get("status", {}).get("restarts", 0))
    child = State(name, "waiting", "", ()) if job is None else job_state(job, pods, now)
    if "Completed" in conditions:
        return State(name, "finished", child.detail if child.word == "finished" else "", (), 0)
    if (failed := conditions.get("Failed")) is not None:
        reason = str(failed.get("reason", ""))
        detail = child.detail if child.word == "failed" else _JOBSET_REASONS.get(reason, reason)
        return State(name, "failed", _with_restarts(detail, restarts), child.lines, child.exit_code or 1)
    if "Suspended" in conditions or jobset.get("spec", {}).get("suspend"):
        return State(name, "suspended", "spec.suspend is set", child.lines)
    if job is None:
        detail = "its job is being recreated" if restarts else "its job has not been created yet"
        return State(name, "restarting" if restarts else "waiting", _with_restarts(detail, restarts), ())
    if child.word != "failed" or not _is_restarted_after(jobset, job):
        return replace(child, name=name, detail=_with_restarts(child.detail, restarts), exit_code=None)
    count = f"{_counted_restarts(jobset)} of {_max_restarts(jobset)} restarts used"
    return State(name, "restarting", f"{child.detail}; all workers restart ({count})", child.lines)


def _with_restarts(detail: str, restarts: int) -> str:
    return f"{detail}, after {restarts} restart{'s' * (restarts > 1)}" if restarts else detail


def _counted_restarts(jobset: Object) -> int:
    return int(jobset.get("status", {}).get("restartsCountTowardsMax", 0))


def _max_restarts(jobset: Object) -> int:
    return int(jobset.get("spec", {}).get("failurePolicy", {}).get("maxRestarts", 0))


def _is_restarted_after(jobset: Object, job: Object) -> bool:
    """Return whether the failure policy recreates the failed `job`; the first matching rule applies."""
    conditions = true_conditions(job)
    failed = conditions.get("Failed") or conditions["FailureTarget"]
    rules = jobset.get("spec", {}).get("failurePolicy", {}).get("rules", [])
    action = next((str(rule["action"]) for rule in rules if _matches(rule, failed)), "RestartJobSet")
    is_allowed = action.endswith(_IGNORE_MAX_RESTARTS) or _counted_restarts(jobset) < _max_restarts(jobset)
    return action != _FAIL_JOBSET and is_allowed


def _matches(rule: Object, failed: Object) -> bool:
    reasons, patterns = rule.get("onJobFailureReasons"), rule.get("onJobFailureMessagePatterns")
    has_reason = not reasons or failed.get("reason") in reasons
    return has_reason and (
        not patterns or any(re.search(pattern, str(failed.get("message", ""))) for pattern in patterns)
    )


def true_conditions(value: Object) -> dict[str, Object]:
    """Return the conditions of an object that are true, by type."""
    conditions = value.get("status", {}).get("conditions", [])
    return {condition["type"]: condition for condition in conditions if condition.get("status") == "True"}


def _failed_code(failed: Object, pods: Sequence[Object]) -> int:
    """Return the exit code that failed the job: from the policy's message, else of the last failed pod."""
    if (match := _FAILED_POD.match(str(failed.get("message", "")))) is not None:
        return int(match["code"])
    ends = [
        (EXIT_CODES.get(code, ("", "Count"))[1] != "Ignore", str(terminated.get("finishedAt", "")), code)
        for pod in pods
        if (terminated := container_state(pod).get("terminated")) and (code := exit_code_of(terminated))
    ]
    return max(ends)[-1] if ends else _UNKNOWN_CODE


def _line_of_deleted_pod(job: Object, failed: Object, pods: Sequence[Object]) -> tuple[str, ...]:
    """Return the line of the pod that the job's condition names, if it is no longer among `pods`."""
    match = _FAILED_POD.match(str(failed.get("message", "")))
    if match is None or match["pod"] in (pod["metadata"]["name"] for pod in pods):
        return ()
    index = re.match(rf"{re.escape(job['metadata']['name'])}-(\d+)-", match["pod"])
    worker = f"worker {index[1]}: " if index and int(job.get("spec", {}).get("parallelism", 1)) > 1 else ""
    return (f"{worker}{describe_exit_code(int(match['code']))}",)


def container_state(pod: Object) -> Object:
    """Return the state of a pod's container: waiting, running or terminated; empty if it has none yet."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    ours = [status for status in statuses if status.get("name") == CONTAINER] or statuses
    return dict(ours[0].get("state", {})) if ours else {}


def exit_code_of(terminated: Object) -> int:
    """Return the exit code of a terminated container, 137 if it was OOM-killed."""
    is_out_of_memory = terminated.get("reason") == "OOMKilled"
    return _OUT_OF_MEMORY_CODE if is_out_of_memory else int(terminated.get("exitCode", 0))


def describe_exit_code(code: int) -> str:
    """Return the meaning of an exit code, from the table of exit codes."""
    if code in EXIT_CODES:
        return f"exit code {code}: {EXIT_CODES[code][0]}"
    signal = f", terminated by signal {code - 128}" if 128 < code < 160 else ""
    return f"exit code {code}{signal}"


def newest_pods(pods: Iterable[Object]) -> list[Object]:
    """Return the newest pod of each worker, in worker order."""
    newest: dict[int, Object] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", ""))):
        newest[index_of(pod)] = pod
    return [newest[index] for index in sorted(newest)]


def index_of(pod: Object) -> int:
    """Return the worker index of a pod."""
    return int(pod["metadata"].get("annotations", {}).get(INDEX, 0))


def pod_line(pod: Object, has_peers: bool) -> str:
    """Return why a pod is pending or how it ended; empty if it runs."""
    # A preemption or an eviction ends the container, too, so it takes precedence.
    reason = _disruption_reason(pod) or _container_reason(container_state(pod)) or _scheduling_reason(pod)
    return f"worker {index_of(pod)}: {reason}" if reason and has_peers else reason


def _container_reason(state: Object) -> str:
    if (waiting := state.get("waiting")) is not None:
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_ERRORS:
            return f"cannot pull the image: check its name, and the nodes' access to the registry ({message})"
        if reason in ("ContainerCreating", "PodInitializing", ""):
            return "the container is being created"
        return f"{reason} ({message})"
    if (terminated := state.get("terminated")) is not None:
        if terminated.get("reason") == "OOMKilled":
            return "out of memory: use a smaller batch, or a machine with more memory"
        return describe_exit_code(code) if (code := exit_code_of(terminated)) else ""
    return ""


def _disruption_reason(pod: Object) -> str:
    status = pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            reason = status.get("message") or condition.get("reason", "preempted")
            return f"its machine was preempted ({reason}); it restarts on another one"
    if status.get("phase") == "Failed" and status.get("reason"):
        return f"terminated by Kubernetes: {status['reason']} ({status.get('message', '')})"
    return ""


def _scheduling_reason(pod: Object) -> str:
    for condition in pod.get("status", {}).get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return f"no node is suitable: {condition.get('message', '')}"
    return ""


def _failure_reason(condition: Object) -> str:
    reason = condition.get("reason", "")
    return _REASONS.get(reason, reason or "no reason given")


def describe_duration(started: str | None, ended: str | None, now: datetime) -> str:
    """Return the elapsed time in minutes as text; the times are RFC 3339 strings in UTC."""
    if started is None:
        return "not started yet"
    seconds = ((parse_time(ended) if ended else now) - parse_time(started)).total_seconds()
    return f"{'took' if ended else 'for'} {round(seconds / _MINUTE_SECONDS)} min"
