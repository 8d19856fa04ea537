"""How a job on Kubernetes goes, and why, in words.

In: what the cluster says of a job and its pods. Out: a `State`: one word, what it is about, and a line for
each pod that needs one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from trainer.exits import EXIT_CODES

_PULLING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_REASONS = {
    "DeadlineExceeded": "it took longer than its deadline",
    "BackoffLimitExceeded": "it failed too often",
    "PodFailurePolicy": "it ended in a way that trying again doesn't mend",
}
_MINUTE_SECONDS = 60
JOB_LABEL = "batch.kubernetes.io/job-name"
"""Of the pods of a job."""
OURS = ("app.kubernetes.io/managed-by", "trainer")
"""The label of all that this program makes in a cluster."""
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
"""Of the jobs of a JobSet, and of their pods."""


@dataclass(frozen=True)
class State:
    """Of one job."""

    name: str
    word: str
    """waiting, running, finished, failed or suspended."""
    about: str
    """What there is to be said of it as a whole."""
    lines: tuple[str, ...]
    """What there is to be said of its pods."""

    def text(self) -> list[str]:
        """Return it as lines for a person."""
        head = f"{self.name}  {self.word}{f', {self.about}' if self.about else ''}"
        return [head, *(f"  {line}" for line in self.lines)]


def state_of(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], now: datetime) -> State:
    """Return the state of `job`, as Kubernetes has it, with its `pods`."""
    status = job.get("status", {})
    name = job["metadata"].get("labels", {}).get(JOBSET_LABEL) or job["metadata"]["name"]
    time = took(status.get("startTime"), status.get("completionTime"), now)
    conditions = {each["type"]: each for each in status.get("conditions", []) if each.get("status") == "True"}
    newest = newest_pods(pods)
    lines = tuple(line for pod in newest if (line := _pod_line(pod, len(newest) > 1)))
    if "Complete" in conditions:
        return State(name, "finished", time, ())
    if (failed := conditions.get("Failed") or conditions.get("FailureTarget")) is not None:
        return State(name, "failed", _why(failed), lines)
    if "Suspended" in conditions or job.get("spec", {}).get("suspend"):
        return State(name, "suspended", "a queue or a person holds it back", lines)
    ready, wanted = int(status.get("ready", 0)), int(job.get("spec", {}).get("parallelism", 1))
    if ready:
        many = f"{ready} of {wanted} workers ready, " if wanted > 1 else ""
        return State(name, "running", f"{many}{time}", lines)
    return State(name, "waiting", time, lines)


def explain_code(code: int) -> str:
    """Return what an exit code means, in the words of the one table."""
    if code in EXIT_CODES:
        return f"exit code {code}: {EXIT_CODES[code][0]}"
    signal = f", ended by signal {code - 128}" if 128 < code < 160 else ""
    return f"exit code {code}{signal}"


def newest_pods(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the last pod of each worker, in their order."""
    last: dict[int, Mapping[str, Any]] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", ""))):
        last[index_of(pod)] = pod
    return [last[index] for index in sorted(last)]


def index_of(pod: Mapping[str, Any]) -> int:
    """Return which worker a pod is."""
    return int(pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", 0))


def _pod_line(pod: Mapping[str, Any], is_one_of_many: bool) -> str:
    """Return what holds a pod up or how it ended; empty if it runs."""
    # A machine that is taken away, or a pod that is put out, ends a container too: that comes first.
    said = _of_machine(pod) or _of_containers(pod) or _of_schedule(pod)
    return f"worker {index_of(pod)}: {said}" if said and is_one_of_many else said


def _of_containers(pod: Mapping[str, Any]) -> str:
    for each in pod.get("status", {}).get("containerStatuses", []):
        state = each.get("state", {})
        if (waiting := state.get("waiting")) is not None:
            reason, message = waiting.get("reason", ""), waiting.get("message", "")
            if reason in _PULLING:
                return (
                    f"the image can't be pulled: see its name, and whether the nodes may read it ({message})"
                )
            if reason in ("ContainerCreating", "PodInitializing", ""):
                return "the container is being made"
            return f"{reason} ({message})"
        if (ended := state.get("terminated")) is not None:
            if ended.get("reason") == "OOMKilled":
                return "out of memory: a smaller batch, or a machine with more"
            if ended.get("exitCode", 0) != 0:
                return explain_code(int(ended["exitCode"]))
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
    """Return how long it has run or ran, of times as Google's interfaces write them."""
    if started is None:
        return "not started yet"
    seconds = ((_time(ended) if ended else now) - _time(started)).total_seconds()
    return f"{'took' if ended else 'for'} {round(seconds / _MINUTE_SECONDS)} min"


def _time(text: str) -> datetime:
    """Return a time in UTC, with or without parts of a second."""
    return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
