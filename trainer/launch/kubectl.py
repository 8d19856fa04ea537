"""Wrapper of kubectl, which provides the connection to the cluster and the credentials.

kubectl prints error responses of the API server in fixed formats (`StandardErrorMessage` in k8s.io/kubectl).
The rest of an error quotes names that users chose, so only the format and the reason are parsed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictInt

from trainer.errors import TemporaryError, UsageError
from trainer.launch.kubernetes import DEPENDENTS, check_namespace
from trainer.launch.responses import Response, ResponseError, Time, parse_json, read_response
from trainer.launch.state import INDEX
from trainer.storage.temporary import temporary_parent

_PROGRAM = "kubectl"
_CLUSTER = "the cluster"
_SECONDS = 60.0
JOBS, CRON_JOBS, JOB_SETS = "jobs.batch", "cronjobs.batch", "jobsets.jobset.x-k8s.io"
"""Resource names with their API groups, as other systems define jobs, too."""
LOCAL_QUEUES, WORKLOADS = "localqueues.kueue.x-k8s.io", "workloads.kueue.x-k8s.io"
CREATE_NAMESPACE = (
    "Create the namespace trainer and its service account with `kubectl apply -f k8s/namespace.yaml`; for "
    "another namespace, change the name in that file."
)

NOT_FOUND = "NotFound"
ALREADY_EXISTS = "AlreadyExists"
FORBIDDEN = "Forbidden"
BAD_REQUEST = "BadRequest"
NO_KIND = "NoKind"
"""Not a reason of the API server: the kind does not exist, for example without the CRD of JobSet or Kueue."""
_NO_CONTEXT = "NoContext"
_UNAUTHORIZED = "Unauthorized"
_UNREACHABLE = "Unreachable"
_TEMPORARY = (
    _UNREACHABLE, "ServiceUnavailable", "Timeout", "ServerTimeout", "TooManyRequests", "InternalError",
)  # fmt: skip
_LOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.")
"""Prefix of the lines of kubectl's own log."""
_NOT_SPACE = re.compile(r"\S")
_NO_NAMESPACE = re.compile(r'namespaces "[^"]*" not found$')
_FORMATS = (
    (re.compile(r"Error from server \((?P<reason>\w+)\): "), ""),
    (re.compile(r"Error from server: "), _UNREACHABLE),  # such as a timeout of etcd: no reason
    (re.compile(r"error: You must be logged in to the server "), _UNAUTHORIZED),
    (re.compile(r"Unable to connect to the server: (x509|tls|remote error|getting credentials)\b"),
     _UNAUTHORIZED),
    (re.compile(r"Unable to connect to the server: "), _UNREACHABLE),
    (re.compile(r"The connection to the server \S+ was refused"), _UNREACHABLE),
    # Printed while kubectl looks up the schema of an object from standard input.
    (re.compile(r'error: (?:error validating|unable to recognize) "STDIN": (?:[^"]*: )?Get "'), _UNREACHABLE),
    (re.compile(r"error: the server doesn't have a resource type "), NO_KIND),
    (re.compile(r'error: resource mapping not found for name: "[^"]*" namespace: "[^"]*" from "STDIN": '),
     NO_KIND),
    (re.compile(r'error: unable to recognize "STDIN": no matches for kind '), NO_KIND),
    (re.compile(r"error: current-context is not set"), _NO_CONTEXT),
    (re.compile(r'error: context "[^"]*" does not exist'), _NO_CONTEXT),
    (re.compile(r"(error|Error) in configuration: context was not found"), _NO_CONTEXT),
)  # fmt: skip
_GET_CREDENTIALS = "`gcloud container clusters get-credentials CLUSTER`"
_MESSAGES = {
    _NO_CONTEXT: (
        "The kubectl configuration does not contain this cluster.",
        f"Add it with {_GET_CREDENTIALS}, or select another one with --context.",
    ),
    _UNAUTHORIZED: (
        "The cluster rejects the credentials of kubectl.", f"Get new ones with {_GET_CREDENTIALS}.",
    ),
    _UNREACHABLE: (
        "The cluster cannot be reached.", "Check the connection with `kubectl cluster-info`, then try again.",
    ),
    NO_KIND: ("The cluster does not have this kind of object.", ""),
}  # fmt: skip
"""Problem and remedy by reason."""


class KubectlError(UsageError):
    """Error reported by kubectl or the API server, with the reason from the server's status."""

    def __init__(self, problem: str, remedy: str, reason: str, line: str) -> None:
        super().__init__(problem, remedy, line)
        self.reason = reason
        """Reason such as NotFound or Forbidden; empty if unknown."""
        self.line = line
        """The line that kubectl printed."""


def parse_failure(verb: str, text: str) -> KubectlError | TemporaryError:
    """Return the error for the output `text` of a failed `kubectl VERB`."""
    reason, line = _find_reason(text)
    if reason in _TEMPORARY:
        problem, remedy = _MESSAGES.get(reason, ("The cluster has a temporary problem.", "Try again later."))
        return TemporaryError(problem, remedy, line)
    problem, remedy = _MESSAGES.get(reason, (f"The cluster rejects the request (kubectl {verb}).", ""))
    return KubectlError(problem, remedy, reason, line)


def _find_reason(text: str) -> tuple[str, str]:
    """Return the reason in `text`, empty if there is none, and the line of the error."""
    lines = [line for line in text.splitlines() if line.strip() and not _LOG.match(line)]
    for line in lines:
        for pattern, reason in _FORMATS:
            if match := pattern.match(line):
                return match.groupdict().get("reason") or reason, line
    return "", lines[-1] if lines else "nothing"


def _require_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(str(error)) from None
    return text


def _require_index(annotations: dict[str, str]) -> dict[str, str]:
    int(annotations.get(INDEX, 0))
    return annotations


# Objects as `kubectl -o json` prints them; the classes have the fields that this package reads.


class _Condition(Response):
    type: str
    status: str = ""
    reason: str = ""
    message: str = ""


class _Terminated(Response):
    exit_code: StrictInt = 0
    reason: str = ""
    finished_at: str | None = None


class _Waiting(Response):
    reason: str = ""
    message: str = ""


class _ContainerState(Response):
    waiting: _Waiting | None = None
    terminated: _Terminated | None = None


class _ContainerStatus(Response):
    name: str = ""
    state: _ContainerState = _ContainerState()


class _Status(Response):
    conditions: tuple[_Condition, ...] = ()
    container_statuses: tuple[_ContainerStatus, ...] = ()
    start_time: Time | None = None
    completion_time: Time | None = None
    ready: StrictInt = 0
    restarts: StrictInt = 0
    restarts_count_towards_max: StrictInt = 0
    phase: str = ""
    reason: str = ""
    message: str = ""


class _FailureRule(Response):
    action: str
    on_job_failure_reasons: tuple[str, ...] = ()
    on_job_failure_message_patterns: tuple[Annotated[str, AfterValidator(_require_pattern)], ...] = ()


class _FailurePolicy(Response):
    max_restarts: StrictInt = 0
    rules: tuple[_FailureRule, ...] = ()


class _Variable(Response):
    name: str
    value: str | None = None


class _Container(Response):
    env: tuple[_Variable, ...] = ()


class _PodSpec(Response):
    containers: tuple[_Container, ...] = ()


class _PodTemplate(Response):
    spec: _PodSpec = _PodSpec()


class _JobSpec(Response):
    template: _PodTemplate = _PodTemplate()


class _JobTemplate(Response):
    spec: _JobSpec = _JobSpec()


class _ReplicatedJob(Response):
    template: _JobTemplate = _JobTemplate()


class _Spec(_JobSpec):
    parallelism: StrictInt = 1
    suspend: bool = False
    active: bool = True
    schedule: str = ""
    time_zone: str = ""
    failure_policy: _FailurePolicy = _FailurePolicy()
    replicated_jobs: tuple[_ReplicatedJob, ...] = ()


class _Owner(Response):
    uid: str


class _ManagedFields(Response):
    manager: str = ""
    time: str = ""
    fields_v1: dict[str, dict[str, Any]] = Field(default_factory=dict)


class _Metadata(Response):
    name: str
    uid: str = ""
    creation_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: Annotated[dict[str, str], AfterValidator(_require_index)] = Field(default_factory=dict)
    owner_references: tuple[_Owner, ...] = ()
    managed_fields: tuple[_ManagedFields, ...] = ()


class _InvolvedObject(Response):
    uid: str = ""


class _Object(Response):
    """Any object: all fields that are read of a Job, JobSet, CronJob, Pod, Event or Kueue object."""

    api_version: str
    kind: str
    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()
    involved_object: _InvolvedObject = _InvolvedObject()
    type: str = ""
    reason: str = ""
    message: str | None = None
    last_timestamp: str | None = None
    event_time: str | None = None


class _List(Response):
    items: list[_Object]


class _ReviewStatus(Response):
    allowed: bool


class _Review(Response):
    status: _ReviewStatus


class _ClientVersion(Response):
    git_version: str


class _Version(Response):
    client_version: _ClientVersion


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
        value = parse_json(self._run("version", "--client", "-o", "json"), _PROGRAM)
        return str(read_response(_Version, value, _PROGRAM)["clientVersion"]["gitVersion"])

    def allowed(self, permissions: Sequence[tuple[str, str]]) -> list[bool]:
        """Return whether the user has each (verb, resource) permission, such as ("get", "pods/log").

        Raises UsageError, TemporaryError.
        """
        reviews = [self._review(verb, resource) for verb, resource in permissions]
        body = {"apiVersion": "v1", "kind": "List", "items": reviews}
        # To validate a review, kubectl would list the cluster's CRDs, which the role edit does not permit.
        text = self._run("create", "--validate=false", "-f", "-", "-o", "json", body=body)
        answers = [read_response(_Review, value, _CLUSTER) for value in _parse_documents(text)]
        if len(answers) != len(permissions):
            raise ResponseError(_CLUSTER, f"{len(answers)} answers to {len(permissions)} reviews")
        return [bool(answer["status"]["allowed"]) for answer in answers]

    def _review(self, verb: str, target: str) -> dict[str, Any]:
        resource, _, subresource = target.partition("/")
        name, _, group = resource.partition(".")
        attributes = {
            "namespace": self.namespace, "verb": verb, "group": group, "resource": name,
            "subresource": subresource,
        }  # fmt: skip
        return {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
        }

    def create(self, objects: Sequence[dict[str, Any]]) -> None:
        """Create all `objects` or none; a server-side dry run first validates each of them.

        The last object is created first and owns the others, so they are garbage-collected with it. Raises
        UsageError if the cluster rejects an object, TemporaryError if it is unreachable.
        """
        for manifest in objects:
            self._create(manifest, "--dry-run=server")
        *dependents, main = objects
        try:
            text = self._create(main, "-o", "json")
            created = read_response(_Object, parse_json(text, _CLUSTER), _CLUSTER)
        except UsageError:
            raise
        except BaseException:
            # The object may have been created; the dry run showed that the name was free before.
            self._remove(main)
            raise
        reference = {
            "apiVersion": created["apiVersion"],
            "kind": created["kind"],
            "name": created["metadata"]["name"],
            "uid": created["metadata"].get("uid", ""),
        }
        try:
            for manifest in dependents:
                metadata = manifest["metadata"] | {"ownerReferences": [reference]}
                self._create(manifest | {"metadata": metadata})
        except BaseException:
            self._remove(created)
            raise

    def _create(self, manifest: dict[str, Any], *options: str) -> str:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        try:
            return self._run("create", *options, "-f", "-", body=manifest)
        except KubectlError as error:
            if (message := _creation_message(error, kind, name)) is None:
                raise
            raise UsageError(*message, error.line) from None

    def _remove(self, manifest: dict[str, Any]) -> None:
        with suppress(UsageError, TemporaryError):
            name = manifest["metadata"]["name"]
            self._run("delete", resource_of(manifest), name, "--wait=false", "--ignore-not-found")

    def get(self, kind: str, name: str, *options: str) -> dict[str, Any] | None:
        """Return an object, None if it does not exist. Raises UsageError, TemporaryError."""
        text = self._run("get", kind, name, "--ignore-not-found", "-o", "json", *options)
        return read_response(_Object, parse_json(text, _CLUSTER), _CLUSTER) if text.strip() else None

    def find(self, kind: str, *options: str) -> list[dict[str, Any]]:
        """Return the objects of a kind in the namespace that match the kubectl `options`.

        Raises UsageError, TemporaryError.
        """
        value = parse_json(self._run("get", kind, *options, "-o", "json"), _CLUSTER)
        return list(read_response(_List, value, _CLUSTER)["items"])

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
            tempfile.TemporaryFile("w+", errors="replace", dir=temporary_parent()) as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
            ) as process,
        ):
            try:
                yield from (line.rstrip("\n") for line in process.stdout or ())
            except BaseException:
                process.terminate()  # with -f it would run as long as the container
                raise
            if process.wait():
                errors.seek(0)
                raise parse_failure("logs", errors.read())

    def _command(self, *arguments: str) -> list[str]:
        if shutil.which(_PROGRAM) is None:
            raise UsageError(
                "kubectl is not installed.",
                "Install it as described at https://kubernetes.io/docs/tasks/tools.",
                "no kubectl on the PATH",
            )
        context = [] if self.context is None else ["--context", self.context]
        return [_PROGRAM, *context, "--namespace", self.namespace, *arguments]

    def _run(self, *arguments: str, body: dict[str, Any] | None = None) -> str:
        try:
            process = subprocess.run(
                self._command(*arguments),
                input=None if body is None else json.dumps(body),
                capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TemporaryError(
                "The cluster does not respond.", _MESSAGES[_UNREACHABLE][1], f"nothing for {_SECONDS:g} s"
            ) from None
        if process.returncode == 0:
            return process.stdout
        raise parse_failure(arguments[0], process.stderr.strip() or process.stdout.strip())


def resource_of(value: Mapping[str, Any]) -> str:
    """Return the resource of a Job, JobSet or CronJob with its API group, such as jobs.batch."""
    return f"{value['kind'].lower()}s.{value['apiVersion'].partition('/')[0]}"


def _creation_message(error: KubectlError, kind: str, name: str) -> tuple[str, str] | None:
    """Return problem and remedy for an object that cannot be created, None if the error includes them."""
    reason = error.reason
    if reason == NOT_FOUND and _NO_NAMESPACE.search(error.line):
        return "The namespace does not exist.", CREATE_NAMESPACE
    if reason == NO_KIND and kind == "JobSet":
        return (
            "The cluster does not have JobSets.",
            "Install them (https://jobset.sigs.k8s.io), or omit --jobset.",
        )
    if reason != ALREADY_EXISTS:
        return None
    if kind in DEPENDENTS.values():
        return (
            f"The namespace already has a {kind} named {name}, and the workers need one of this name.",
            f"Choose another name with --run-name. The {kind} of a job that was just cancelled is deleted "
            "automatically.",
        )
    return (
        f"A {kind} named {name} already exists.",
        f"Show its state with `trainer status gke {name}`, or delete it with `trainer cancel gke {name}`; "
        "the same run can then be resumed.",
    )


def _parse_documents(text: str) -> Iterator[Any]:
    """Yield the JSON values of `text`, which kubectl prints one after another. Raises ResponseError."""
    decoder, position = json.JSONDecoder(), 0
    while (start := _NOT_SPACE.search(text, position)) is not None:
        try:
            value, position = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError) as error:
            raise ResponseError(_CLUSTER, f"{error} in {text[:80]!r}") from None
        yield value
