"""Whether a cluster takes our jobs: it is asked through kubectl.

In: a `Kubectl` and the names that a job would use. Out: a `Check` of each.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainer.exits import TrainerError
from trainer.launch.accelerators import Accelerator
from trainer.launch.checks import Check, failed, unknown
from trainer.launch.kubectl import Kubectl

_RIGHTS = (
    ("create", "jobs.batch"), ("get", "jobs.batch"), ("list", "jobs.batch"), ("delete", "jobs.batch"),
    ("create", "cronjobs.batch"), ("create", "services"), ("list", "pods"), ("get", "pods/log"),
    ("list", "events"),
)  # fmt: skip
_NAMESPACE = "`kubectl apply -f k8s/namespace.yaml` makes the namespace and its account"


def check_cluster(
    kubectl: Kubectl, account: str, queue: str | None, wanted: Accelerator, is_gke: bool
) -> Iterator[Check]:
    """Yield what is found: program, cluster, what a job needs there; ends where nobody can be asked."""
    try:
        yield Check("kubectl", "ok", kubectl.version())
        where = kubectl.where()
    except TrainerError as error:
        yield failed("kubectl", error)
        return
    try:
        kubectl.get("namespace", kubectl.namespace)
        yield Check("cluster", "ok", where)
    except TrainerError as error:
        is_there = "not found" in str(error)
        remedy = (
            _NAMESPACE if is_there else "see whether `kubectl get namespaces` works, and who you are there"
        )
        yield failed(f"namespace {kubectl.namespace}" if is_there else "cluster", error, remedy)
        return
    yield _one(kubectl, "serviceaccount", account, _NAMESPACE + ", --service-account names another")
    yield _rights(kubectl)
    if queue is not None:
        yield _one(
            kubectl, "localqueue.kueue.x-k8s.io", queue, "--queue names a local queue of the namespace"
        )
    if wanted.kind != "cpu" and is_gke:
        yield _nodes(kubectl, wanted)


def _one(kubectl: Kubectl, kind: str, name: str, remedy: str) -> Check:
    word = kind.partition(".")[0]
    try:
        kubectl.get(kind, name)
    except TrainerError as error:
        return failed(f"{word} {name}", error, remedy)
    return Check(f"{word} {name}", "ok", "it is there")


def _rights(kubectl: Kubectl) -> Check:
    try:
        lacking = [f"{verb} {what}" for verb, what in _RIGHTS if not kubectl.may(verb, what)]
    except TrainerError as error:
        return unknown("rights", error)
    if not lacking:
        return Check("rights", "ok", "you may send, follow and end jobs")
    remedy = "whoever owns the cluster can give you the role edit in the namespace"
    return Check("rights", "wrong", f"you may not {', '.join(lacking)}", remedy)


def _nodes(kubectl: Kubectl, wanted: Accelerator) -> Check:
    label = f"cloud.google.com/gke-{'tpu-' if wanted.kind == 'tpu' else ''}accelerator={wanted.gke}"
    try:
        many = len(kubectl.find("nodes", label))
    except TrainerError as error:
        return unknown("accelerator", error)
    if many:
        return Check("accelerator", "ok", f"{many} nodes with {wanted.name}")
    return Check(
        "accelerator", "unknown", f"no node has {wanted.name} now",
        "an Autopilot cluster or a node pool that grows makes one; else add a pool of this kind",
    )  # fmt: skip
