"""Log of a worker in a cluster: its current content, or a stream until the job ends.

When a pod is replaced, the log continues with the next pod. When the connection breaks, it continues after
the last printed line, by the timestamps of the lines.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime, timezone

from trainer.errors import StoppedError, TemporaryError, UsageError, error_of
from trainer.launch.cluster_jobs import ClusterJobs, JobWithPods, NamedObjects
from trainer.launch.kubectl import BAD_REQUEST, NOT_FOUND, KubectlError, resource_of
from trainer.launch.state import CONTAINER, Object, State, container_state, index_of, pod_line

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
