"""Wrapper of kubectl, which provides the connection to the cluster and the credentials."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trainer.errors import TemporaryError, UsageError
from trainer.launch.group_access import DEPENDENTS
from trainer.launch.kubectl_errors import (
    ALREADY_EXISTS,
    NO_KIND,
    NOT_FOUND,
    KubectlError,
    parse_failure,
)
from trainer.launch.names import check_namespace
from trainer.storage.temporary import temporary_parent

_PROGRAM = "kubectl"
_SECONDS = 60.0
_NO_NAMESPACE = re.compile(r'namespaces "[^"]*" not found$')
_TEXT = re.compile(r"\S")
JOBS, CRON_JOBS, JOB_SETS = "jobs.batch", "cronjobs.batch", "jobsets.jobset.x-k8s.io"
"""Resource names with their API groups, as other systems define jobs, too."""
NAMESPACE_ADVICE = (
    "`kubectl apply -f k8s/namespace.yaml` creates the namespace trainer and its service account; change the "
    "name in that file for another namespace"
)


@dataclass(frozen=True)
class Kubectl:
    """Runs kubectl for one namespace of one cluster."""

    namespace: str
    context: str | None = None
    """Context of the kubectl configuration; None is the current one."""

    def __post_init__(self) -> None:
        """Raise UsageError for an invalid namespace name."""
        check_namespace(self.namespace)

    def where(self) -> str:
        """Return context and namespace, for messages. Raises UsageError if there is no current context."""
        context = self.context or self._run("config", "current-context").strip()
        return f"{context}, namespace {self.namespace}"

    def version(self) -> str:
        """Return the version of kubectl. Raises UsageError if it is not installed."""
        told = json.loads(self._run("version", "--client", "-o", "json"))
        return str(told["clientVersion"]["gitVersion"])

    def allowed(self, rights: Sequence[tuple[str, str]]) -> list[bool]:
        """Return whether the user has each (verb, resource) permission, such as ("get", "pods/log").

        Raises UsageError, TemporaryError.
        """
        reviews = {"apiVersion": "v1", "kind": "List", "items": [self._review(*right) for right in rights]}
        # To validate a review, kubectl would list the cluster's CRDs, which the role edit does not permit.
        text = self._run("create", "--validate=false", "-f", "-", "-o", "json", given=reviews)
        answers = list(_documents(text))
        if len(answers) != len(rights):
            raise ValueError(f"{len(answers)} answers to {len(rights)} reviews")
        return [bool(answer.get("status", {}).get("allowed")) for answer in answers]

    def _review(self, verb: str, what: str) -> dict[str, Any]:
        resource, _, part = what.partition("/")
        name, _, group = resource.partition(".")
        asked = {
            "namespace": self.namespace,
            "verb": verb,
            "group": group,
            "resource": name,
            "subresource": part,
        }
        return {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in asked.items() if value}},
        }

    def create(self, objects: Sequence[dict[str, Any]]) -> None:
        """Create all `objects` or none; a server-side dry run first validates each of them.

        The last object is created first and owns the others, so they are garbage-collected with it. Raises
        UsageError if the cluster rejects an object, TemporaryError if it is unreachable.
        """
        for each in objects:
            self._create(each, "--dry-run=server")
        *others, main = objects
        try:
            made = json.loads(self._create(main, "-o", "json"))
        except UsageError:
            raise
        except BaseException:
            # The object may have been created; the dry run showed that the name was free before.
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
                self._create(owned)
        except BaseException:
            self._remove(made)
            raise

    def _create(self, value: dict[str, Any], *options: str) -> str:
        kind, name = value["kind"], value["metadata"]["name"]
        try:
            return self._run("create", *options, "-f", "-", given=value)
        except KubectlError as error:
            if (advice := _creation_advice(error, kind, name)) is None:
                raise
            raise UsageError(f"{advice}.", received=error.line) from None

    def _remove(self, made: dict[str, Any]) -> None:
        with suppress(UsageError, TemporaryError):
            name = made["metadata"]["name"]
            self._run("delete", resource_of(made), name, "--wait=false", "--ignore-not-found")

    def get(self, kind: str, name: str, *options: str) -> dict[str, Any] | None:
        """Return an object, None if it does not exist. Raises UsageError, TemporaryError."""
        text = self._run("get", kind, name, "--ignore-not-found", "-o", "json", *options)
        return dict(json.loads(text)) if text.strip() else None

    def find(self, kind: str, *options: str) -> list[dict[str, Any]]:
        """Return the objects of a kind in the namespace that match the kubectl `options`.

        Raises UsageError, TemporaryError.
        """
        return list(json.loads(self._run("get", kind, *options, "-o", "json"))["items"])

    def delete(self, kind: str, name: str) -> None:
        """Start the deletion of an object and all that it owns. Raises UsageError, TemporaryError."""
        self._run("delete", kind, name, "--wait=false", "--cascade=background", "--ignore-not-found")

    def has_namespace(self) -> bool | None:
        """Return whether the namespace exists, None without permission to read it. Raises TemporaryError."""
        try:
            return self.get("namespaces", self.namespace) is not None
        except KubectlError:
            return None

    def logs(self, pod: str, container: str, *options: str) -> Iterator[str]:
        """Yield the lines of a container's log. Raises UsageError, TemporaryError."""
        command = self._command("logs", pod, "-c", container, *options)
        with (
            tempfile.TemporaryFile("w+", errors="replace", dir=temporary_parent()) as problems,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=problems, text=True, errors="replace"
            ) as process,
        ):
            try:
                yield from (line.rstrip("\n") for line in process.stdout or ())
            except BaseException:
                process.terminate()  # with -f it would run as long as the container
                raise
            if process.wait():
                problems.seek(0)
                raise parse_failure("logs", problems.read())

    def _command(self, *arguments: str) -> list[str]:
        if shutil.which(_PROGRAM) is None:
            raise UsageError(
                "kubectl, which talks to the cluster, isn't installed; "
                "https://kubernetes.io/docs/tasks/tools tells how.",
                received="no kubectl on the PATH",
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
                "The cluster doesn't answer; see whether kubectl reaches it.",
                received=f"nothing for {_SECONDS:g} s",
            ) from None
        if done.returncode == 0:
            return done.stdout
        raise parse_failure(arguments[0], done.stderr.strip() or done.stdout.strip())


def resource_of(value: Mapping[str, Any]) -> str:
    """Return the resource of a Job, JobSet or CronJob with its API group, such as jobs.batch."""
    return f"{value['kind'].lower()}s.{value['apiVersion'].partition('/')[0]}"


def _creation_advice(error: KubectlError, kind: str, name: str) -> str | None:
    """Return the remedy for an object that cannot be created, None if the error includes it."""
    reason = error.reason
    if reason == NOT_FOUND and _NO_NAMESPACE.search(error.line):
        return f"The namespace does not exist. {NAMESPACE_ADVICE}"
    if reason == NO_KIND and kind == "JobSet":
        return (
            "The cluster knows no JobSets; install them (https://jobset.sigs.k8s.io), or leave --jobset away"
        )
    if reason != ALREADY_EXISTS:
        return None
    if kind in DEPENDENTS.values():
        return (
            f"The namespace has a {kind} called {name}, and the workers need one of this name; --run-name "
            "gives another. That of a job that was just cancelled goes by itself"
        )
    return (
        f"There is a {kind} of this name; `trainer status gke {name}` shows its state, and `trainer cancel "
        f"gke {name}` deletes it, so that the same run can be resumed"
    )


def _documents(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of `text`, which kubectl prints one after another."""
    decoder, position = json.JSONDecoder(), 0
    while (start := _TEXT.search(text, position)) is not None:
        value, position = decoder.raw_decode(text, start.start())
        yield value
