"""Preflight checks of a cluster through kubectl: of a namespace, and of one job before it is created.

A check that lacks a permission is "unknown" and names the permission.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainer.errors import TemporaryError, UsageError
from trainer.launch.accelerators import Accelerator
from trainer.launch.checks import Check, failed, unknown
from trainer.launch.group_access import ACCESS_RIGHTS
from trainer.launch.kubectl import CRON_JOBS, JOB_SETS, JOBS, NAMESPACE_ADVICE, Kubectl
from trainer.launch.kubectl_errors import FORBIDDEN, NO_KIND, KubectlError
from trainer.launch.plan import JobPlan
from trainer.launch.suspended import LOCAL_QUEUES

_RIGHTS = (
    *((verb, kind) for kind in (JOBS, CRON_JOBS) for verb in ("create", "get", "list", "delete")),
    ("create", "services"), ("get", "services"), ("delete", "services"), *ACCESS_RIGHTS,
    ("list", "pods"), ("get", "pods/log"), ("list", "events"),
)  # fmt: skip
_NO_KUEUE = "The cluster has no Kueue, and the job would start at once; leave --queue away"


def check_cluster(
    kubectl: Kubectl, account: str, queue: str | None, wanted: Accelerator, is_gke: bool
) -> Iterator[Check]:
    """Yield checks of kubectl, the cluster and what a job needs; stop if the cluster is unreachable."""
    try:
        yield Check("kubectl", "ok", kubectl.version())
        where = kubectl.where()
    except (UsageError, TemporaryError) as error:
        yield failed("kubectl", error)
        return
    try:
        namespace = _one(kubectl, "namespaces", kubectl.namespace, NAMESPACE_ADVICE)
    except (UsageError, TemporaryError) as error:
        yield failed("cluster", error)
        return
    yield Check("cluster", "ok", where) if namespace.state == "ok" else namespace
    if namespace.state == "wrong":
        return
    try:
        yield _one(
            kubectl, "serviceaccounts", account, f"{NAMESPACE_ADVICE}; --service-account names another"
        )
        yield _rights(kubectl)
        if queue is not None:
            yield check_queue(kubectl, queue)
        if wanted.kind != "cpu" and is_gke:
            yield _nodes(kubectl, wanted)
    except (UsageError, TemporaryError) as error:
        yield failed("cluster", error)


def check_name(kubectl: Kubectl, plan: JobPlan) -> Iterator[Check]:
    """Check that no object of another kind has the job's name; yield checks that could not be made.

    Raises UsageError if one has the name, TemporaryError.
    """
    own = CRON_JOBS if plan.schedule else JOB_SETS if plan.is_jobset else JOBS
    for kind in (CRON_JOBS, JOB_SETS, JOBS):
        try:
            if kind == own or kubectl.get(kind, plan.name) is None:
                continue
        except KubectlError as error:
            if error.reason != NO_KIND:
                yield _unseen(f"name {plan.name}", f"get {kind}", error)
            continue
        other = {CRON_JOBS: "schedule", JOB_SETS: "JobSet", JOBS: "job"}[kind]
        raise UsageError(
            f"A {other} has this name; --run-name gives another, `trainer cancel gke {plan.name}` ends "
            f"the {other}.",
            received=plan.name,
        )


def check_queue(kubectl: Kubectl, queue: str) -> Check:
    """Check that the namespace has the Kueue local queue `queue`. Raises TemporaryError."""
    advice = (
        f"--queue names a local queue of the namespace: `kubectl get {LOCAL_QUEUES} -n {kubectl.namespace}` "
        "lists them"
    )
    return _one(kubectl, LOCAL_QUEUES, queue, advice, _NO_KUEUE)


def _one(kubectl: Kubectl, kind: str, name: str, advice: str, without_kind: str = "") -> Check:
    """Check that an object exists. Raises TemporaryError, and errors that do not concern this object."""
    label = f"{kind.partition('.')[0].removesuffix('s')} {name}"
    try:
        if kubectl.get(kind, name) is None:
            return Check(label, "wrong", f"there is no {label}", advice)
    except KubectlError as error:
        if error.reason == NO_KIND and without_kind:
            return Check(label, "wrong", error.line, without_kind)
        if error.reason != FORBIDDEN:
            raise
        return _unseen(label, f"get {kind}", error)
    return Check(label, "ok", "it is there")


def _unseen(name: str, right: str, error: KubectlError) -> Check:
    """Return an "unknown" check: the permission is missing or the cluster does not answer."""
    if error.reason == FORBIDDEN:
        return Check(name, "unknown", f"can't be checked: it needs the right {right}")
    return unknown(name, error)


def _rights(kubectl: Kubectl) -> Check:
    try:
        allowed = kubectl.allowed(_RIGHTS)
    except KubectlError as error:
        return _unseen("rights", "create selfsubjectaccessreviews.authorization.k8s.io", error)
    lacking = [" ".join(right) for right, is_allowed in zip(_RIGHTS, allowed, strict=True) if not is_allowed]
    if not lacking:
        return Check("rights", "ok", "you may send, follow and end jobs")
    remedy = "whoever owns the cluster can give you the role edit in the namespace"
    return Check("rights", "wrong", f"you may not {', '.join(lacking)}", remedy)


def _nodes(kubectl: Kubectl, wanted: Accelerator) -> Check:
    label = f"cloud.google.com/gke-{'tpu-' if wanted.kind == 'tpu' else ''}accelerator={wanted.gke}"
    try:
        many = len(kubectl.find("nodes", "-l", label))
    except KubectlError as error:
        return _unseen("accelerator", "list nodes", error)
    if many:
        return Check("accelerator", "ok", f"{many} nodes with {wanted.name}")
    return Check(
        "accelerator", "unknown", f"no node has {wanted.name} now",
        "an Autopilot cluster or a node pool that grows makes one; else add a pool of this kind",
    )  # fmt: skip
