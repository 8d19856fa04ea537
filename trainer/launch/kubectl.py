"""kubectl, which knows how to reach the cluster and who we are there.

In: objects. Out: the same, created; or none of them, and what kubectl said.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trainer.exits import TemporaryError, UsageError
from trainer.launch.state import JOB_LABEL, JOBSET_LABEL, OURS, index_of, newest_pods

_PROGRAM = "kubectl"
_SECONDS = 60.0
_UNREACHABLE = ("was refused", "no route to host", "i/o timeout", "connection refused", "timeout", "EOF")


@dataclass(frozen=True)
class Kubectl:
    """Calls it for one namespace of one cluster."""

    namespace: str
    context: str | None = None
    """Of its configuration; None is the current one."""

    def where(self) -> str:
        """Return the cluster's name in kubectl's configuration. Raises UsageError if there is none."""
        context = self.context or self._run("config", "current-context").strip()
        return f"{context}, namespace {self.namespace}"

    def version(self) -> str:
        """Return which kubectl this is. Raises UsageError if there is none."""
        told = json.loads(self._run("version", "--client", "-o", "json"))
        return str(told["clientVersion"]["gitVersion"])

    def may(self, verb: str, what: str) -> bool:
        """Return whether we have the right to do `verb` to `what`, as jobs.batch or pods/log, there.

        Raises UsageError, TemporaryError.
        """
        resource, _, part = what.partition("/")
        name, _, group = resource.partition(".")
        asked = {
            "namespace": self.namespace,
            "verb": verb,
            "group": group,
            "resource": name,
            "subresource": part,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in asked.items() if value}},
        }
        answer = json.loads(self._run("create", "-f", "-", "-o", "json", given=review))
        return bool(answer.get("status", {}).get("allowed"))

    def create(self, objects: Sequence[dict[str, Any]]) -> None:
        """Create all of `objects`, or none: the cluster is asked first whether it would take each of them.

        The last one comes first and owns the others, which go when it does. Raises UsageError for what the
        cluster refuses, TemporaryError if it can't be reached.
        """
        for each in objects:
            self._run("create", "--dry-run=server", "-f", "-", given=each)
        *others, main = objects
        try:
            made = json.loads(self._run("create", "-f", "-", "-o", "json", given=main))
        except UsageError:
            raise
        except BaseException:
            # Whether it was created nobody knows; before there was nothing of this name.
            self._remove(main)
            raise
        reference = {
            "apiVersion": made["apiVersion"],
            "kind": made["kind"],
            "name": made["metadata"]["name"],
            "uid": made["metadata"]["uid"],
        }
        try:
            for each in others:
                owned = each | {"metadata": each["metadata"] | {"ownerReferences": [reference]}}
                self._run("create", "-f", "-", given=owned)
        except BaseException:
            self._remove(made)
            raise

    def _remove(self, made: dict[str, Any]) -> None:
        kind, name = made["kind"].lower(), made["metadata"]["name"]
        with suppress(UsageError, TemporaryError):
            self._run("delete", kind, name, "--wait=false", "--ignore-not-found")

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object. Raises UsageError if there is none, TemporaryError."""
        return dict(json.loads(self._run("get", kind, name, "-o", "json")))

    def find(self, kind: str, selector: str) -> list[dict[str, Any]]:
        """Return the objects whose labels fit `selector`."""
        return list(json.loads(self._run("get", kind, "-l", selector, "-o", "json"))["items"])

    def job(self, name: str) -> dict[str, Any]:
        """Return the job called `name`, or that of the JobSet. Raises UsageError, TemporaryError."""
        try:
            return self.get("job", name)
        except UsageError:
            found = self.find("jobs", f"{JOBSET_LABEL}={name}")
            if not found:
                raise UsageError(
                    f"There is no such job (not found); `trainer list gke` shows them. Received: {name}"
                ) from None
            return found[-1]

    def pods(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the pods of `job`, those that have ended too."""
        return self.find("pods", f"{JOB_LABEL}={job['metadata']['name']}")

    def delete(self, kind: str, name: str) -> bool:
        """Begin to remove one of our objects and what it made; return whether there was one.

        Raises UsageError, TemporaryError.
        """
        try:
            found = self.get(kind, name)
        except UsageError as error:
            if "not found" in str(error) or "doesn't have a resource type" in str(error):
                return False
            raise
        if found["metadata"].get("labels", {}).get(OURS[0]) != OURS[1]:
            return False
        self._run("delete", kind, name, "--wait=false", "--cascade=background", "--ignore-not-found")
        return True

    def warning(self, names: Sequence[str]) -> str:
        """Return the newest warning about objects of these names, as why nothing starts; or nothing."""
        try:
            said = self._run("get", "events", "--field-selector", "type=Warning", "-o", "json")
        except (UsageError, TemporaryError):
            return ""
        warnings = [
            each for each in json.loads(said)["items"]
            if each.get("type") == "Warning" and each.get("involvedObject", {}).get("name") in names
        ]  # fmt: skip
        if not warnings:
            return ""
        newest = max(warnings, key=lambda each: str(each.get("lastTimestamp") or each.get("eventTime") or ""))
        return f"{newest.get('reason', '')}: {newest.get('message', '')}"

    def logs(self, job: str, worker: int, is_following: bool) -> Iterator[str]:
        """Yield the lines that a worker of `job` says. Raises UsageError, TemporaryError."""
        chosen = newest_pods(self.pods(self.job(job)))
        names = [pod["metadata"]["name"] for pod in chosen if index_of(pod) == worker]
        if not names:
            raise UsageError(
                f"There is no such worker yet; `trainer status gke {job}` tells why. "
                f"Received: worker {worker} of {len(chosen)} pods"
            )
        follow = ["-f"] if is_following else []
        with subprocess.Popen(
            self._command("logs", names[-1], *follow), stdout=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            try:
                yield from (line.rstrip("\n") for line in process.stdout or ())
            except BaseException:
                process.terminate()  # it would go on for as long as the job does
                raise
        if process.returncode:
            raise UsageError(
                f"kubectl could not print it; see above why. Received: exit code {process.returncode}"
            )

    def _command(self, *arguments: str) -> list[str]:
        if shutil.which(_PROGRAM) is None:
            raise UsageError(
                "kubectl, which talks to the cluster, isn't installed; "
                "https://kubernetes.io/docs/tasks/tools tells how. Received: no kubectl on the PATH"
            )
        context = [] if self.context is None else ["--context", self.context]
        return [_PROGRAM, *context, "--namespace", self.namespace, *arguments]

    def _run(self, *arguments: str, given: dict[str, Any] | None = None) -> str:
        try:
            done = subprocess.run(
                self._command(*arguments),
                input=None if given is None else json.dumps(given),
                capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TemporaryError(
                "The cluster doesn't answer; see whether kubectl reaches it. "
                f"Received: nothing for {_SECONDS:g} s"
            ) from None
        if done.returncode == 0:
            return done.stdout
        raise _failure(arguments[0], done.stderr.strip() or done.stdout.strip())


def _failure(verb: str, said: str) -> UsageError | TemporaryError:
    line = next((line for line in reversed(said.splitlines()) if line.strip()), "nothing")
    if "current-context is not set" in said or ("does not exist" in said and "context" in said):
        return UsageError(
            "kubectl knows no such cluster; `gcloud container clusters get-credentials CLUSTER` makes it "
            f"known, --context names another. Received: {line}"
        )
    if 'no matches for kind "JobSet"' in said:
        return UsageError(
            "The cluster knows no JobSets; have them installed there (https://jobset.sigs.k8s.io), or leave "
            f"--jobset away. Received: {line}"
        )
    if any(each in said for each in _UNREACHABLE):
        return TemporaryError(f"The cluster can't be reached. Received: {line}")
    if "AlreadyExists" in said:
        return UsageError(
            "There is a job of this name; `trainer status gke` tells how it goes, and `trainer cancel gke` "
            f"takes it away, so that the same run can go on. Received: {line}"
        )
    return UsageError(f"The cluster refuses it (kubectl {verb}). Received: {line}")
