"""Jobs, JobSets and schedules of a namespace: lookup, state with its reason, and cancellation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from trainer.errors import TemporaryError, UsageError
from trainer.launch.group_access import DEPENDENTS
from trainer.launch.jobset import jobset_state
from trainer.launch.kubectl import CRON_JOBS, JOB_SETS, JOBS, NAMESPACE_ADVICE, Kubectl
from trainer.launch.kubectl_errors import FORBIDDEN, NO_KIND, KubectlError
from trainer.launch.state import CONTROLLER_LABEL, JOB_LABEL, JOBSET_LABEL, OURS, State, state_of
from trainer.launch.suspended import explain_suspension

Choice = Literal["schedule", "job"]
Object = Mapping[str, Any]
_OURS = ("-l", "=".join(OURS))
_WORDS = {CRON_JOBS: "cronjob", JOB_SETS: "jobset", JOBS: "job"}


@dataclass(frozen=True)
class Work:
    """A Job, or a JobSet with its child job, and their pods."""

    main: Object
    job: Object | None
    """The job that owns the pods: `main` itself, or the child of a JobSet, None while it has none."""
    pods: Sequence[Object]

    def state(self, now: datetime) -> State:
        """Return the state of the job or JobSet."""
        if self.main["kind"] == "JobSet":
            return jobset_state(self.main, self.job, self.pods, now)
        return state_of(self.main, self.pods, now)

    @property
    def uids(self) -> set[str]:
        """UIDs of all its objects, by which events refer to them."""
        objects = [self.main, *([self.job] if self.job else []), *self.pods]
        return {str(each["metadata"].get("uid", "")) for each in objects}


@dataclass(frozen=True)
class Named:
    """Objects of one name: a schedule, work, or both. For a schedule alone, its newest job is the work."""

    schedule: Object | None
    work: Work | None


class ClusterJobs:
    """Jobs, JobSets and schedules of one namespace."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl

    def named(self, name: str) -> Named:
        """Return the objects called `name`. Raises UsageError if there are none, TemporaryError."""
        found, refusals = self._look(name)
        schedule, main = found.get(CRON_JOBS), found.get(JOB_SETS) or found.get(JOBS)
        if main is None and schedule is not None:
            main = _newest(job for job in self.kubectl.find(JOBS, *_OURS) if _is_owned(job, schedule))
        if main is None and schedule is None:  # the JobSet may exist without permission to read it
            main = _newest(self.kubectl.find(JOBS, "-l", f"{JOBSET_LABEL}={name}"))
        if main is None and schedule is None:
            raise self._missing(name, refusals)
        return Named(schedule, None if main is None else self.work(main))

    def work(self, main: Object) -> Work:
        """Return `main`, a Job or JobSet, with its child job and pods. Raises UsageError, TemporaryError."""
        job: Object | None = main
        if main["kind"] == "JobSet":
            jobs = self.kubectl.find(JOBS, "-l", f"{JOBSET_LABEL}={main['metadata']['name']}")
            job = _newest(each for each in jobs if _is_owned(each, main))
        if job is None:
            return Work(main, None, ())
        pods = self.kubectl.find("pods", "-l", f"{JOB_LABEL}={job['metadata']['name']}")
        return Work(main, job, [pod for pod in pods if _is_pod_of(pod, job)])

    def explain(self, work: Work, now: datetime) -> State:
        """Return the state of `work`, with the reason if it is not running. Raises TemporaryError."""
        state = work.state(now)
        if state.word == "suspended":
            return replace(state, lines=(explain_suspension(self.kubectl, work.main), *state.lines))
        if state.word in ("waiting", "restarting") and not state.lines and (said := self._warning(work.uids)):
            return replace(state, lines=(said,))
        return state

    def _warning(self, uids: set[str]) -> str:
        """Return the newest warning event about the objects with these UIDs; empty if none is readable."""
        try:
            events = self.kubectl.find("events", "--field-selector", "type=Warning")
        except (UsageError, TemporaryError):
            return ""
        ours = [
            each for each in events
            if each.get("type") == "Warning" and each.get("involvedObject", {}).get("uid") in uids
        ]  # fmt: skip
        if not ours:
            return ""
        newest = max(ours, key=lambda each: str(each.get("lastTimestamp") or each.get("eventTime") or ""))
        return f"{newest.get('reason', '')}: {newest.get('message', '')}"

    def overview(self, now: datetime) -> tuple[list[str], list[str]]:
        """Return a line for each schedule and job, and a note for each kind without permission to list it.

        Raises UsageError if the namespace does not exist or neither jobs nor schedules may be listed,
        TemporaryError.
        """
        lists, refusals = {}, []
        for kind in (CRON_JOBS, JOB_SETS, JOBS, "pods"):
            try:
                lists[kind] = self.kubectl.find(kind, *_OURS)
            except KubectlError as error:
                lists[kind] = []
                if error.reason == FORBIDDEN:
                    refusals.append((kind, error))
                elif error.reason != NO_KIND:
                    raise
        if {JOBS, CRON_JOBS} <= {kind for kind, _ in refusals}:
            raise refusals[0][1]
        if not any(lists.values()) and self.kubectl.has_namespace() is False:
            raise self._no_namespace()
        lines = [f"{each['metadata']['name']}  at {each['spec']['schedule']}" for each in lists[CRON_JOBS]]
        lines += [work.state(now).text()[0] for work in _works(lists[JOB_SETS], lists[JOBS], lists["pods"])]
        return lines, [f"{kind} are not listed: it needs the right list {kind}" for kind, _ in refusals]

    def cancel(self, name: str, choice: Choice | None) -> list[str]:
        """Start the deletion of the job or schedule called `name`; return the kinds of the deleted objects.

        Raises UsageError if there is none, or if there are both and no `choice`; TemporaryError.
        """
        found, refusals = self._look(name)
        ours = {kind: value for kind, value in found.items() if _is_ours(value)}
        is_schedule = {kind: kind == CRON_JOBS for kind in ours}
        if choice is None and len(set(is_schedule.values())) > 1:
            raise UsageError(
                f"A schedule and a job are called so: `trainer cancel gke {name} --schedule` ends the "
                f"schedule and its jobs, `trainer cancel gke {name} --job` the other job.",
                received=name,
            )
        chosen = [kind for kind in ours if choice is None or is_schedule[kind] == (choice == "schedule")]
        for kind in chosen:
            self.kubectl.delete(kind, name)
        removed = [_WORDS[kind] for kind in chosen]
        owners = [ours[kind] for kind in chosen]
        for resource, kind in DEPENDENTS.items():
            if self._remove_dependent(resource, name, owners, is_alone=not ours):
                removed.append(kind.lower())
        if not removed:
            raise self._missing(name, refusals)
        return removed

    def _remove_dependent(self, resource: str, name: str, owners: Sequence[Object], is_alone: bool) -> bool:
        """Delete an object that belongs to `owners`, or an orphaned one; return whether there was one."""
        try:
            value = self.kubectl.get(resource, name)
            if value is None or not _is_ours(value):
                return False
            if not (is_alone or any(_is_owned(value, owner) for owner in owners)):
                return False
            self.kubectl.delete(resource, name)
        except KubectlError:
            return False  # it is garbage-collected with its owner
        return True

    def _look(self, name: str) -> tuple[dict[str, Object], list[KubectlError]]:
        """Return the objects called `name` by kind, and the errors of the kinds that could not be read."""
        found: dict[str, Object] = {}
        refusals = []
        for kind in (CRON_JOBS, JOB_SETS, JOBS):
            try:
                if (value := self.kubectl.get(kind, name)) is not None:
                    found[kind] = value
            except KubectlError as error:
                if error.reason != NO_KIND:
                    refusals.append(error)
        return found, refusals

    def _missing(self, name: str, refusals: Sequence[KubectlError]) -> UsageError:
        if refusals:
            return refusals[0]
        if self.kubectl.has_namespace() is False:
            return self._no_namespace()
        return UsageError("There is no such job; `trainer list gke` shows them.", received=name)

    def _no_namespace(self) -> UsageError:
        return UsageError(
            f"The namespace does not exist. {NAMESPACE_ADVICE}.", received=self.kubectl.namespace
        )


def _works(jobsets: Sequence[Object], jobs: Sequence[Object], pods: Sequence[Object]) -> Iterable[Work]:
    """Yield each JobSet, and each job that belongs to none of them, with its pods."""
    for jobset in jobsets:
        job = _newest(each for each in jobs if _is_owned(each, jobset))
        yield Work(jobset, job, [pod for pod in pods if job is not None and _is_pod_of(pod, job)])
    for job in jobs:
        if not any(_is_owned(job, jobset) for jobset in jobsets):
            yield Work(job, job, [pod for pod in pods if _is_pod_of(pod, job)])


def _is_ours(value: Object) -> bool:
    return bool(value["metadata"].get("labels", {}).get(OURS[0]) == OURS[1])


def _is_owned(value: Object, owner: Object) -> bool:
    uid = owner["metadata"].get("uid")
    return any(each.get("uid") == uid for each in value["metadata"].get("ownerReferences", []))


def _is_pod_of(pod: Object, job: Object) -> bool:
    """Return whether a pod belongs to this job and not to an earlier one of the same name."""
    labels = pod["metadata"].get("labels", {})
    if labels.get(JOB_LABEL) != job["metadata"]["name"]:
        return False
    uid = job["metadata"].get("uid")
    return bool(labels.get(CONTROLLER_LABEL, uid) == uid)


def _newest(objects: Iterable[Object]) -> Object | None:
    return max(objects, key=lambda each: str(each["metadata"].get("creationTimestamp", "")), default=None)
