"""Preflight checks of a cluster through kubectl: of a namespace, and of one job before it is created.

A check that lacks a permission is "unknown" and names the permission.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainer.errors import TemporaryError, UsageError
from trainer.launch.accelerators import Accelerator
from trainer.launch.checks import Check, failed, unknown
from trainer.launch.group_access import ACCESS_RIGHTS
from trainer.launch.kubectl import (
    CREATE_NAMESPACE,
    CRON_JOBS,
    FORBIDDEN,
    JOB_SETS,
    JOBS,
    LOCAL_QUEUES,
    NO_KIND,
    Kubectl,
    KubectlError,
)
from trainer.launch.plan import JobPlan

_PERMISSIONS = (
    *((verb, kind) for kind in (JOBS, CRON_JOBS) for verb in ("create", "get", "list", "delete")),
    ("create", "services"), ("get", "services"), ("delete", "services"), *ACCESS_RIGHTS,
    ("list", "pods"), ("get", "pods/log"), ("list", "events"),
)  # fmt: skip


def check_cluster(
    kubectl: Kubectl, account: str, queue: str | None, accelerator: Accelerator, is_gke: bool
) -> Iterator[Check]:
    """Yield checks of kubectl, the cluster and what a job needs; stop if the cluster is unreachable."""
    try:
        yield Check("kubectl", "ok", kubectl.version())
        where = kubectl.where()
    except (UsageError, TemporaryError) as error:
        yield failed("kubectl", error)
        return
    try:
        namespace = _check_object(kubectl, "namespaces", kubectl.namespace, CREATE_NAMESPACE)
    except (UsageError, TemporaryError) as error:
        yield failed("cluster", error)
        return
    yield Check("cluster", "ok", where) if namespace.state == "ok" else namespace
    if namespace.state == "wrong":
        return
    try:
        remedy = f"{CREATE_NAMESPACE} Name another service account with --service-account."
        yield _check_object(kubectl, "serviceaccounts", account, remedy)
        yield _check_permissions(kubectl)
        if queue is not None:
            yield check_queue(kubectl, queue)
        if accelerator.kind != "cpu" and is_gke:
            yield _check_nodes(kubectl, accelerator)
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
                yield _unreadable(f"name {plan.name}", f"get {kind}", error)
            continue
        other = {CRON_JOBS: "schedule", JOB_SETS: "JobSet", JOBS: "job"}[kind]
        raise UsageError(
            f"A {other} of this name already exists.",
            f"Choose another name with --run-name, or cancel the {other}: `trainer cancel gke {plan.name}`.",
            plan.name,
        )


def check_queue(kubectl: Kubectl, queue: str) -> Check:
    """Check that the namespace has the Kueue local queue `queue`. Raises TemporaryError."""
    remedy = (
        f"List the local queues with `kubectl get {LOCAL_QUEUES} -n {kubectl.namespace}`, and name one with "
        "--queue."
    )
    return _check_object(kubectl, LOCAL_QUEUES, queue, remedy)


def _check_object(kubectl: Kubectl, kind: str, name: str, remedy: str) -> Check:
    """Check that an object exists. Raises TemporaryError, and errors that do not concern this object."""
    label = f"{kind.partition('.')[0].removesuffix('s')} {name}"
    try:
        if kubectl.get(kind, name) is None:
            return Check(label, "wrong", f"the {label} does not exist", remedy)
    except KubectlError as error:
        if error.reason == NO_KIND and kind == LOCAL_QUEUES:
            finding = f"the cluster does not have Kueue, so that a job would start at once ({error.line})"
            return Check(label, "wrong", finding, "Omit --queue, or install Kueue.")
        if error.reason != FORBIDDEN:
            raise
        return _unreadable(label, f"get {kind}", error)
    return Check(label, "ok", "it exists")


def _unreadable(name: str, permission: str, error: KubectlError) -> Check:
    """Return an "unknown" check: the permission is missing or the cluster does not respond."""
    if error.reason == FORBIDDEN:
        return Check(name, "unknown", f"not checked: this requires the permission {permission}")
    return unknown(name, error)


def _check_permissions(kubectl: Kubectl) -> Check:
    name = "permissions"
    try:
        allowed = kubectl.allowed(_PERMISSIONS)
    except KubectlError as error:
        return _unreadable(name, "create selfsubjectaccessreviews.authorization.k8s.io", error)
    missing = [
        " ".join(permission)
        for permission, is_allowed in zip(_PERMISSIONS, allowed, strict=True)
        if not is_allowed
    ]
    if not missing:
        return Check(name, "ok", "you can create, follow and cancel jobs")
    remedy = "Ask the owner of the cluster for the role edit in the namespace."
    return Check(name, "wrong", f"you cannot {', '.join(missing)}", remedy)


def _check_nodes(kubectl: Kubectl, accelerator: Accelerator) -> Check:
    label = f"cloud.google.com/gke-{'tpu-' * (accelerator.kind == 'tpu')}accelerator={accelerator.gke}"
    try:
        count = len(kubectl.find("nodes", "-l", label))
    except KubectlError as error:
        return _unreadable("accelerator", "list nodes", error)
    if count:
        return Check(
            "accelerator", "ok", f"{count} {'node' if count == 1 else 'nodes'} with {accelerator.name}"
        )
    return Check(
        "accelerator", "unknown", f"no node has {accelerator.name} now",
        "An Autopilot cluster, or a node pool with autoscaling, creates one. Otherwise add a node pool with "
        "this accelerator.",
    )  # fmt: skip
