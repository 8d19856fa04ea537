"""Jobs, JobSets and schedules of a namespace: lookup, state with its reason, logs and cancellation.

A suspended job waits for its Kueue queue, or until the controller that set `spec.suspend` resumes it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Literal

from trainer.errors import StoppedError, TemporaryError, UsageError, error_of
from trainer.launch.kubectl import (
    BAD_REQUEST,
    CREATE_NAMESPACE,
    CRON_JOBS,
    FORBIDDEN,
    JOB_SETS,
    JOBS,
    LOCAL_QUEUES,
    NO_KIND,
    NOT_FOUND,
    WORKLOADS,
    Kubectl,
    KubectlError,
    resource_of,
)
from trainer.launch.kubernetes import DEPENDENTS
from trainer.launch.plan import SPEC
from trainer.launch.state import (
    CONTAINER,
    CONTROLLER_LABEL,
    JOB_LABEL,
    JOBSET_LABEL,
    OURS,
    Object,
    State,
    container_state,
    index_of,
    job_state,
    jobset_state,
    pod_line,
)

Choice = Literal["schedule", "job"]
_OURS = ("-l", "=".join(OURS))
_KINDS = {CRON_JOBS: "cronjob", JOB_SETS: "jobset", JOBS: "job"}
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_WORKLOAD_LABEL = "kueue.x-k8s.io/job-uid"
"""Label of the workload that Kueue creates for a job."""


@dataclass(frozen=True)
class JobWithPods:
    """A Job, or a JobSet with its child job, and their pods."""

    main: Object
    job: Object | None
    """The job that owns the pods: `main` itself, or the child of a JobSet, None while it has none."""
    pods: Sequence[Object]

    def state(self, now: datetime) -> State:
        """Return the state of the job or JobSet."""
        if self.main["kind"] == "JobSet":
            return jobset_state(self.main, self.job, self.pods, now)
        return job_state(self.main, self.pods, now)

    @property
    def spec_text(self) -> str | None:
        """The run's spec from the environment of the container, None if there is none."""
        template = self.main
        if self.main["kind"] == "JobSet":
            template = (self.main.get("spec", {}).get("replicatedJobs") or [{}])[0].get("template", {})
        pod = template.get("spec", {}).get("template", {}).get("spec", {})
        variables = (pod.get("containers") or [{}])[0].get("env", [])
        text = next((variable.get("value") for variable in variables if variable["name"] == SPEC), None)
        return text.replace("$$", "$") if text else None

    @property
    def uids(self) -> set[str]:
        """UIDs of all its objects, by which events refer to them."""
        objects = [self.main, *([self.job] if self.job else []), *self.pods]
        return {str(value["metadata"].get("uid", "")) for value in objects}


@dataclass(frozen=True)
class NamedObjects:
    """Objects of one name: a schedule, work, or both. For a schedule alone, its newest job is the work."""

    schedule: Object | None
    work: JobWithPods | None

    @property
    def schedule_text(self) -> str:
        """The schedule and its time zone, for messages."""
        return describe_schedule(self.schedule or {})


class ClusterJobs:
    """Jobs, JobSets and schedules of one namespace."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl

    def named(self, name: str) -> NamedObjects:
        """Return the objects called `name`. Raises UsageError if there are none, TemporaryError."""
        objects, errors = self._get_all(name)
        schedule, main = objects.get(CRON_JOBS), objects.get(JOB_SETS) or objects.get(JOBS)
        if main is None and schedule is not None:
            main = _newest(job for job in self.kubectl.find(JOBS, *_OURS) if _is_owned(job, schedule))
        if main is None and schedule is None:  # the JobSet may exist without permission to read it
            main = _newest(self.kubectl.find(JOBS, "-l", f"{JOBSET_LABEL}={name}"))
        if main is None and schedule is None:
            raise self._missing_error(name, errors)
        return NamedObjects(schedule, None if main is None else self.work(main))

    def work(self, main: Object) -> JobWithPods:
        """Return `main`, a Job or JobSet, with its child job and pods. Raises UsageError, TemporaryError."""
        job: Object | None = main
        if main["kind"] == "JobSet":
            jobs = self.kubectl.find(JOBS, "-l", f"{JOBSET_LABEL}={main['metadata']['name']}")
            job = _newest(child for child in jobs if _is_owned(child, main))
        if job is None:
            return JobWithPods(main, None, ())
        pods = self.kubectl.find("pods", "-l", f"{JOB_LABEL}={job['metadata']['name']}")
        return JobWithPods(main, job, [pod for pod in pods if _is_pod_of(pod, job)])

    def explain(self, work: JobWithPods, now: datetime) -> State:
        """Return the state of `work`, with the reason if it is not running. Raises TemporaryError."""
        state = work.state(now)
        if state.word == "suspended":
            return replace(state, lines=(_explain_suspension(self.kubectl, work.main), *state.lines))
        if (
            state.word in ("waiting", "restarting")
            and not state.lines
            and (warning := self._newest_warning(work.uids))
        ):
            return replace(state, lines=(warning,))
        return state

    def _newest_warning(self, uids: set[str]) -> str:
        """Return the newest warning event about the objects with these UIDs; empty if none is readable."""
        try:
            events = self.kubectl.find("events", "--field-selector", "type=Warning")
        except (UsageError, TemporaryError):
            return ""
        warnings = [
            event for event in events
            if event.get("type") == "Warning" and event.get("involvedObject", {}).get("uid") in uids
        ]  # fmt: skip
        if not warnings:
            return ""
        newest = max(
            warnings, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or "")
        )
        return f"{newest.get('reason', '')}: {newest.get('message', '')}"

    def overview(self, now: datetime) -> tuple[list[str], list[str]]:
        """Return a line for each schedule and job, and a note for each kind without permission to list it.

        Raises UsageError if the namespace does not exist or neither jobs nor schedules may be listed,
        TemporaryError.
        """
        lists, denied = {}, []
        for kind in (CRON_JOBS, JOB_SETS, JOBS, "pods"):
            try:
                lists[kind] = self.kubectl.find(kind, *_OURS)
            except KubectlError as error:
                lists[kind] = []
                if error.reason == FORBIDDEN:
                    denied.append((kind, error))
                elif error.reason != NO_KIND:
                    raise
        if {JOBS, CRON_JOBS} <= {kind for kind, _ in denied}:
            raise denied[0][1]
        if not any(lists.values()) and self.kubectl.has_namespace() is False:
            raise self._no_namespace_error()
        lines = [f"{cron['metadata']['name']}  at {describe_schedule(cron)}" for cron in lists[CRON_JOBS]]
        lines += [work.state(now).text()[0] for work in _works(lists[JOB_SETS], lists[JOBS], lists["pods"])]
        return lines, [
            f"{kind} are not listed: this requires the permission list {kind}" for kind, _ in denied
        ]

    def cancel(self, name: str, choice: Choice | None) -> list[str]:
        """Start the deletion of the job or schedule called `name`; return the kinds of the deleted objects.

        Raises UsageError if there is none, or if there are both and no `choice`; TemporaryError.
        """
        objects, errors = self._get_all(name)
        ours = {kind: value for kind, value in objects.items() if _is_ours(value)}
        is_schedule = {kind: kind == CRON_JOBS for kind in ours}
        if choice is None and len(set(is_schedule.values())) > 1:
            raise UsageError(
                "A schedule and a job have this name.",
                f"`trainer cancel gke {name} --schedule` cancels the schedule and its jobs, "
                f"`trainer cancel gke {name} --job` the other job.",
                name,
            )
        chosen = [kind for kind in ours if choice is None or is_schedule[kind] == (choice == "schedule")]
        for kind in chosen:
            self.kubectl.delete(kind, name)
        removed = [_KINDS[kind] for kind in chosen]
        owners = [ours[kind] for kind in chosen]
        for resource, kind in DEPENDENTS.items():
            if self._remove_dependent(resource, name, owners, is_alone=not ours):
                removed.append(kind.lower())
        if not removed:
            raise self._missing_error(name, errors)
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

    def _get_all(self, name: str) -> tuple[dict[str, Object], list[KubectlError]]:
        """Return the objects called `name` by kind, and the errors of the kinds that could not be read."""
        objects: dict[str, Object] = {}
        errors = []
        for kind in (CRON_JOBS, JOB_SETS, JOBS):
            try:
                if (value := self.kubectl.get(kind, name)) is not None:
                    objects[kind] = value
            except KubectlError as error:
                if error.reason != NO_KIND:
                    errors.append(error)
        return objects, errors

    def _missing_error(self, name: str, errors: Sequence[KubectlError]) -> UsageError:
        if errors:
            return errors[0]
        if self.kubectl.has_namespace() is False:
            return self._no_namespace_error()
        return UsageError("There is no job of this name.", "List the jobs with `trainer list gke`.", name)

    def _no_namespace_error(self) -> UsageError:
        return UsageError("The namespace does not exist.", CREATE_NAMESPACE, self.kubectl.namespace)


def describe_schedule(cron_job: Object) -> str:
    """Return the schedule and the time zone of a CronJob, for messages."""
    spec = cron_job.get("spec", {})
    return f"{spec.get('schedule')} ({spec.get('timeZone') or 'Etc/UTC'})"


def _explain_suspension(kubectl: Kubectl, main: Object) -> str:
    """Return why `main`, a suspended Job or JobSet, does not start. Raises TemporaryError."""
    queue = main["metadata"].get("labels", {}).get(_QUEUE_LABEL)
    try:
        if queue is None:
            return _explain_manual_suspension(kubectl, main)
        workloads = kubectl.find(WORKLOADS, "-l", f"{_WORKLOAD_LABEL}={main['metadata'].get('uid', '')}")
        if workloads:
            return f"queue {queue}: {_blocking_condition(workloads[-1])}"
        has_queue = kubectl.get(LOCAL_QUEUES, queue) is not None
    except KubectlError as error:
        if error.reason == NO_KIND:
            return f"queue {queue}: the cluster does not have Kueue, so that nothing starts the job"
        return f"the reason cannot be read: {error.line}"
    reason = "Kueue has not created a workload for it yet" if has_queue else "this local queue does not exist"
    return f"queue {queue}: {reason}"


def _blocking_condition(workload: Object) -> str:
    """Return the first blocking condition of a Kueue workload."""
    if workload.get("spec", {}).get("active") is False:
        return "its workload is deactivated (spec.active: false)"
    conditions = {value["type"]: value for value in workload.get("status", {}).get("conditions", [])}
    for kind, status in (("QuotaReserved", "False"), ("Admitted", "False"), ("Evicted", "True")):
        condition = conditions.get(kind, {})
        if condition.get("status") == status:
            return str(condition.get("message") or condition.get("reason") or kind)
    return "waiting in the queue"


def _explain_manual_suspension(kubectl: Kubectl, main: Object) -> str:
    """Return the program that set `spec.suspend`, and when, as recorded in `managedFields`."""
    kind, name = main["kind"].lower(), main["metadata"]["name"]
    value = kubectl.get(resource_of(main), name, "--show-managed-fields") or {}
    changes = [
        fields for fields in value.get("metadata", {}).get("managedFields", [])
        if "f:suspend" in fields.get("fieldsV1", {}).get("f:spec", {})
    ]  # fmt: skip
    command = f"""`kubectl patch {kind} {name} --type merge -p '{{"spec": {{"suspend": false}}}}'`"""
    if not changes:
        return f"it has no queue; resume it with {command}"
    last = max(changes, key=lambda fields: str(fields.get("time", "")))
    manager, time = last.get("manager", "a program"), last.get("time", "an unknown time")
    return f"{manager} set spec.suspend at {time}; resume it with {command}"


def _works(
    jobsets: Sequence[Object], jobs: Sequence[Object], pods: Sequence[Object]
) -> Iterable[JobWithPods]:
    """Yield each JobSet, and each job that belongs to none of them, with its pods."""
    for jobset in jobsets:
        job = _newest(child for child in jobs if _is_owned(child, jobset))
        yield JobWithPods(jobset, job, [pod for pod in pods if job is not None and _is_pod_of(pod, job)])
    for job in jobs:
        if not any(_is_owned(job, jobset) for jobset in jobsets):
            yield JobWithPods(job, job, [pod for pod in pods if _is_pod_of(pod, job)])


def _is_ours(value: Object) -> bool:
    return bool(value["metadata"].get("labels", {}).get(OURS[0]) == OURS[1])


def _is_owned(value: Object, owner: Object) -> bool:
    uid = owner["metadata"].get("uid")
    return any(reference.get("uid") == uid for reference in value["metadata"].get("ownerReferences", []))


def _is_pod_of(pod: Object, job: Object) -> bool:
    """Return whether a pod belongs to this job and not to an earlier one of the same name."""
    labels = pod["metadata"].get("labels", {})
    if labels.get(JOB_LABEL) != job["metadata"]["name"]:
        return False
    uid = job["metadata"].get("uid")
    return bool(labels.get(CONTROLLER_LABEL, uid) == uid)


def _newest(objects: Iterable[Object]) -> Object | None:
    return max(objects, key=lambda value: str(value["metadata"].get("creationTimestamp", "")), default=None)


POLL_SECONDS = 2.0
_MAX_FAILURES = 300
"""Number of consecutive failed polls that are tolerated: longer than a lost node's timeout (5 minutes)."""
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def current_logs(
    jobs: ClusterJobs, name: str, worker: int, note: Callable[[str], None]
) -> Generator[str, None, None]:
    """Yield the log of the worker's newest pod that has one; call `note` if a pod without log is pending.

    Raises UsageError, TemporaryError.
    """
    named = jobs.named(name)
    if named.work is None:
        note(_no_job_note(named))
        return
    pods = _pods_of(named.work, worker)
    with_log = [pod for pod in pods if _has_log(pod)]
    if with_log:
        yield from jobs.kubectl.logs(with_log[-1]["metadata"]["name"], CONTAINER)
    if not pods or pods[-1] not in with_log:
        note(_waiting_note(jobs, named.work, pods))


class LogFollower:
    """Follows the log of one worker, from pod to pod, until the job ends."""

    def __init__(
        self,
        jobs: ClusterJobs,
        name: str,
        worker: int,
        note: Callable[[str], None],
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._jobs, self._name, self._worker, self._note = jobs, name, worker, note
        self._poll_seconds = poll_seconds
        self._main: Object | None = None
        """The followed job, once it exists."""
        self._ended: set[str] = set()
        """UIDs of pods that have ended and whose logs are printed."""
        self._pod, self._time = "", ""
        """UID of the pod that was read last, and timestamp of its last printed line."""
        self._last_note, self._failures = "", 0

    def lines(self) -> Generator[str, None, None]:
        """Yield the lines of the log until the job ends.

        Raises the error for the exit code of a failed job; UsageError if there is no such job or worker;
        StoppedError if the job is deleted; TemporaryError if the cluster stays unreachable.
        """
        state = None
        while state is None:
            try:
                state = yield from self._step()
                self._failures = 0
            except TemporaryError as error:
                self._failures += 1
                if self._main is None or self._failures > _MAX_FAILURES:
                    raise
                self._note_once(str(error))
            if state is None:
                time.sleep(self._poll_seconds)
        if state.exit_code:
            reasons = "; ".join((state.detail, *(line for line in state.lines if line)))
            raise error_of(
                state.exit_code, f"The job {self._name} failed with exit code {state.exit_code}: {reasons}."
            )

    def _step(self) -> Generator[str, None, State | None]:
        """Poll once, yield new lines, and return the state if the job has ended."""
        work = self._current_work()
        if work is None:
            return None
        remaining = [pod for pod in _pods_of(work, self._worker) if _uid(pod) not in self._ended]
        state = work.state(_now())
        is_lost = state.exit_code is not None and self._failures > 0  # its node does not respond
        if remaining and _has_log(remaining[0]) and not is_lost:
            yield from self._read(remaining[0])
        elif remaining and _has_ended(remaining[0]):  # evicted before its container started
            self._finish(remaining[0])
        elif state.exit_code is not None:
            return state
        else:
            self._note_once(_waiting_note(self._jobs, work, remaining))
        return None

    def _current_work(self) -> JobWithPods | None:
        """Return the job's current state, None before a schedule's first job. Raises StoppedError."""
        if self._main is None:
            named = self._jobs.named(self._name)
            if named.work is None:
                self._note_once(_no_job_note(named))
                return None
            self._main = named.work.main
            self._ended |= {_uid(pod) for pod in _pods_of(named.work, self._worker)[:-1]}
            return named.work
        main = self._jobs.kubectl.get(resource_of(self._main), self._main["metadata"]["name"])
        if main is None or _uid(main) != _uid(self._main):
            raise StoppedError("The job was deleted before it ended.", received=self._name)
        return self._jobs.work(main)

    def _read(self, pod: Object) -> Iterator[str]:
        """Yield the lines of a pod's log that are not printed yet."""
        if _uid(pod) != self._pod:
            self._pod, self._time = _uid(pod), ""
        start = self._time
        since = [f"--since-time={start}"] if start else []
        try:
            # A pod that ends meanwhile is read once more: the connection may have broken before its last
            # line.
            for line in self._jobs.kubectl.logs(
                pod["metadata"]["name"], CONTAINER, "-f", "--timestamps", *since
            ):
                timestamp, _, text = line.partition(" ")
                if not _TIMESTAMP.match(timestamp):
                    yield line
                elif timestamp > start:
                    self._time = timestamp
                    yield text
        except (KubectlError, TemporaryError) as error:
            if isinstance(error, KubectlError) and error.reason not in (BAD_REQUEST, NOT_FOUND):
                raise
            if not _has_ended(pod):
                if isinstance(error, TemporaryError):  # its node does not respond at present
                    raise
                self._note_once(str(error))
                return
            self._note_once(f"the log of {pod['metadata']['name']} cannot be read: {error}")
        if _has_ended(pod):
            self._finish(pod)

    def _finish(self, pod: Object) -> None:
        self._ended.add(_uid(pod))
        if reason := pod_line(pod, False):
            self._note_once(f"{pod['metadata']['name']}: {reason}")

    def _note_once(self, text: str) -> None:
        """Call `note` with `text` unless it repeats the last note."""
        if text != self._last_note:
            self._note(text)
        self._last_note = text


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _uid(value: Object) -> str:
    return str(value["metadata"].get("uid") or value["metadata"]["name"])


def _has_log(pod: Object) -> bool:
    return bool({"running", "terminated"} & set(container_state(pod)))


def _has_ended(pod: Object) -> bool:
    is_finished = pod.get("status", {}).get("phase") in ("Failed", "Succeeded")
    return is_finished or "terminated" in container_state(pod)


def _pods_of(work: JobWithPods, worker: int) -> list[Object]:
    """Return the pods of a worker, oldest first. Raises UsageError if the job has no such worker."""
    workers = int(work.job.get("spec", {}).get("parallelism", 1)) if work.job else None
    if workers is not None and worker >= workers:
        raise UsageError(
            f"The job has no worker {worker}.",
            f"Choose an index from 0 to {workers - 1}.",
            f"--worker {worker}",
        )
    pods = [pod for pod in work.pods if index_of(pod) == worker]
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))


def _waiting_note(jobs: ClusterJobs, work: JobWithPods, pods: Sequence[Object]) -> str:
    """Return why the newest of `pods` has no log yet, or why there are no pods."""
    if pods and not _has_ended(pods[-1]):
        reason = pod_line(pods[-1], False) or "not scheduled yet"
        return f"waiting for {pods[-1]['metadata']['name']}: {reason}"
    state = jobs.explain(work, _now())
    reasons = "; ".join(filter(None, (state.detail, *state.lines)))
    name = work.main["metadata"]["name"]
    return f"no pod with a log: {name} is {state.word}{f', {reasons}' if reasons else ''}"


def _no_job_note(named: NamedObjects) -> str:
    return f"no job yet: the schedule is {named.schedule_text}"
