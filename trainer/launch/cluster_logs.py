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
from trainer.launch.cluster_jobs import ClusterJobs, Object, Work
from trainer.launch.kubectl import resource_of
from trainer.launch.kubectl_errors import BAD_REQUEST, NOT_FOUND, KubectlError
from trainer.launch.state import (
    CONTAINER,
    State,
    container_state,
    index_of,
    pod_line,
)

POLL_SECONDS = 2.0
_TRIES = 300
"""Number of consecutive failed polls that are tolerated: longer than a lost node's timeout (5 minutes)."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def current_logs(
    jobs: ClusterJobs, name: str, worker: int, note: Callable[[str], None]
) -> Generator[str, None, None]:
    """Yield the log of the worker's newest pod that has one; call `note` if a pod without log is pending.

    Raises UsageError, TemporaryError.
    """
    named = jobs.named(name)
    if named.work is None:
        note(_no_job(named.schedule))
        return
    pods = _pods_of(named.work, worker)
    with_log = [pod for pod in pods if _has_log(pod)]
    if with_log:
        yield from jobs.kubectl.logs(with_log[-1]["metadata"]["name"], CONTAINER)
    if not pods or pods[-1] not in with_log:
        note(_waiting(jobs, named.work, pods))


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
        self._over: set[str] = set()
        """UIDs of pods that have ended and whose logs are printed."""
        self._pod, self._time = "", ""
        """UID of the pod that was read last, and timestamp of its last printed line."""
        self._noted, self._failures = "", 0

    def lines(self) -> Generator[str, None, None]:
        """Yield the lines of the log until the job ends.

        Raises the error for the exit code of a failed job; UsageError if there is no such job or worker;
        StoppedError if the job is deleted; TemporaryError if the cluster stays unreachable.
        """
        ended = None
        while ended is None:
            try:
                ended = yield from self._step()
                self._failures = 0
            except TemporaryError as error:
                self._failures += 1
                if self._main is None or self._failures > _TRIES:
                    raise
                self._say(str(error))
            if ended is None:
                time.sleep(self._poll_seconds)
        if ended.exit_code:
            reasons = "; ".join((ended.about, *(line for line in ended.lines if line)))
            raise error_of(
                ended.exit_code,
                f"The job {self._name} failed: {reasons}. Received: exit code {ended.exit_code}",
            )

    def _step(self) -> Generator[str, None, State | None]:
        """Poll once, yield new lines, and return the state if the job has ended."""
        work = self._look()
        if work is None:
            return None
        left = [pod for pod in _pods_of(work, self._worker) if _uid(pod) not in self._over]
        state = work.state(_now())
        is_lost = state.exit_code is not None and self._failures > 0  # its node does not respond
        if left and _has_log(left[0]) and not is_lost:
            yield from self._read(left[0])
        elif left and _is_over(left[0]):  # evicted before its container started
            self._end(left[0])
        elif state.exit_code is not None:
            return state
        else:
            self._say(_waiting(self._jobs, work, left))
        return None

    def _look(self) -> Work | None:
        """Return the job's current state, None before a schedule's first job. Raises StoppedError."""
        if self._main is None:
            named = self._jobs.named(self._name)
            if named.work is None:
                self._say(_no_job(named.schedule))
                return None
            self._main = named.work.main
            self._over |= {_uid(pod) for pod in _pods_of(named.work, self._worker)[:-1]}
            return named.work
        found = self._jobs.kubectl.get(resource_of(self._main), self._main["metadata"]["name"])
        if found is None or _uid(found) != _uid(self._main):
            raise StoppedError("The job was deleted before it ended.", received=self._name)
        return self._jobs.work(found)

    def _read(self, pod: Object) -> Iterator[str]:
        """Yield the lines of a pod's log that are not printed yet."""
        if _uid(pod) != self._pod:
            self._pod, self._time = _uid(pod), ""
        resumed = self._time
        since = [f"--since-time={resumed}"] if resumed else []
        try:
            # A pod that ends meanwhile is read once more: the connection may have broken before its last
            # line.
            for line in self._jobs.kubectl.logs(
                pod["metadata"]["name"], CONTAINER, "-f", "--timestamps", *since
            ):
                stamp, _, text = line.partition(" ")
                if not _TIME.match(stamp):
                    yield line
                elif stamp > resumed:
                    self._time = stamp
                    yield text
        except (KubectlError, TemporaryError) as error:
            if isinstance(error, KubectlError) and error.reason not in (BAD_REQUEST, NOT_FOUND):
                raise
            if not _is_over(pod):
                if isinstance(error, TemporaryError):  # its node does not respond at present
                    raise
                self._say(str(error))
                return
            self._say(f"the log of {pod['metadata']['name']} can't be read: {error}")
        if _is_over(pod):
            self._end(pod)

    def _end(self, pod: Object) -> None:
        self._over.add(_uid(pod))
        if reason := pod_line(pod, False):
            self._say(f"{pod['metadata']['name']}: {reason}")

    def _say(self, text: str) -> None:
        """Call `note` with `text` unless it repeats the last note."""
        if text != self._noted:
            self._note(text)
        self._noted = text


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _uid(value: Object) -> str:
    return str(value["metadata"].get("uid") or value["metadata"]["name"])


def _has_log(pod: Object) -> bool:
    return bool({"running", "terminated"} & set(container_state(pod)))


def _is_over(pod: Object) -> bool:
    is_ended = pod.get("status", {}).get("phase") in ("Failed", "Succeeded")
    return is_ended or "terminated" in container_state(pod)


def _pods_of(work: Work, worker: int) -> list[Object]:
    """Return the pods of a worker, oldest first. Raises UsageError if the job has no such worker."""
    wanted = int(work.job.get("spec", {}).get("parallelism", 1)) if work.job else None
    if wanted is not None and worker >= wanted:
        raise UsageError(f"The job has {wanted} workers, counted from 0.", received=f"--worker {worker}")
    pods = [pod for pod in work.pods if index_of(pod) == worker]
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))


def _waiting(jobs: ClusterJobs, work: Work, pods: Sequence[Object]) -> str:
    """Return why the newest of `pods` has no log yet, or why there are no pods."""
    if pods and not _is_over(pods[-1]):
        return (
            f"waiting for {pods[-1]['metadata']['name']}: {pod_line(pods[-1], False) or 'not scheduled yet'}"
        )
    state = jobs.explain(work, _now())
    reasons = "; ".join(filter(None, (state.about, *state.lines)))
    name = work.main["metadata"]["name"]
    return f"no pod with a log: {name} is {state.word}{f', {reasons}' if reasons else ''}"


def _no_job(schedule: Object | None) -> str:
    spec = schedule["spec"] if schedule else {}
    return f"no job yet: the schedule is {spec.get('schedule')} ({spec.get('timeZone', 'Etc/UTC')})"
