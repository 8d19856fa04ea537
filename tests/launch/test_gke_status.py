"""`trainer status gke` and `list gke`: correct reasons despite equal names and missing permissions."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.kube_cluster import Cluster
from helpers.kube_pods import BEGAN, ended, pod

LABELS = {"app.kubernetes.io/managed-by": "trainer"}
QUEUE = "kueue.x-k8s.io/queue-name"


def put(cluster: Cluster, kind: str, name: str, **more: Any) -> dict[str, Any]:
    spec = {"parallelism": 1, "template": {"spec": {"containers": [{"name": "trainer"}]}}}
    value = {"metadata": {"name": name, "labels": dict(LABELS)}, "spec": spec | more.pop("spec", {})}
    return cluster.kube.put(kind, "trainer", value | more)


def status(cluster: Cluster) -> list[str]:
    done = cluster.quick("status", "gke", "pets")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_status_ignores_warnings_of_earlier_job_of_same_name(cluster: Cluster) -> None:
    put(cluster, "jobs", "pets")
    event = {
        "metadata": {"name": "e"}, "type": "Warning", "reason": "FailedCreate",
        "message": "exceeded quota: gpus",
        "involvedObject": {"name": "pets", "uid": "uid-of-an-earlier-one"}, "lastTimestamp": BEGAN,
    }  # fmt: skip
    cluster.kube.put("events", "trainer", event)
    assert status(cluster) == ["pets  waiting, not started yet"]
    event["involvedObject"]["uid"] = "uid-pets"
    assert status(cluster)[1:] == ["  FailedCreate: exceeded quota: gpus"]


def test_status_ignores_pods_of_earlier_job_of_same_name(cluster: Cluster) -> None:
    put(cluster, "jobs", "pets")
    old = pod("pets-x", 0, ended(65))
    old["metadata"]["labels"]["batch.kubernetes.io/controller-uid"] = "uid-of-an-earlier-one"
    cluster.kube.put("pods", "trainer", old)
    assert status(cluster) == ["pets  waiting, not started yet"]


def test_status_of_suspended_job_shows_queue_or_suspending_program(cluster: Cluster) -> None:
    job = put(cluster, "jobs", "pets", spec={"suspend": True})
    fields = {"f:spec": {"f:suspend": {}}}
    job["metadata"]["managedFields"] = [
        {"manager": "kubectl-create", "time": "2026-11-27T10:00:00Z", "fieldsV1": {"f:spec": {}}},
        {"manager": "kubectl-patch", "time": "2026-11-27T11:00:00Z", "fieldsV1": fields},
    ]
    head, reason = status(cluster)
    assert head == "pets  suspended, spec.suspend is set"
    assert reason.startswith(
        "  kubectl-patch set spec.suspend at 2026-11-27T11:00:00Z; resume it with `kubectl patch job pets"
    )
    job["metadata"]["labels"][QUEUE] = "team"
    assert (
        status(cluster)[1] == "  queue team: the cluster does not have Kueue, so that nothing starts the job"
    )
    cluster.kube.absent.clear()
    assert status(cluster)[1] == "  queue team: this local queue does not exist"
    put(cluster, "localqueues", "team")
    assert status(cluster)[1] == "  queue team: Kueue has not created a workload for it yet"
    workload = put(cluster, "workloads", "job-pets-1")
    workload["metadata"]["labels"]["kueue.x-k8s.io/job-uid"] = "uid-pets"
    message = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu"
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message}
    workload["status"] = {"conditions": [condition]}
    assert status(cluster)[1] == f"  queue team: {message}"
    cluster.kube.denied.add("list workloads")
    assert "workloads.kueue.x-k8s.io is forbidden" in status(cluster)[1]


def test_list_sends_one_request_per_kind(cluster: Cluster) -> None:
    for number in range(40):
        put(cluster, "jobs", f"pets-{number}")
    request_count = len(cluster.kube.requests)
    assert len(cluster.quick("list", "gke").stdout.splitlines()) == 40
    lists = [
        request for request in cluster.kube.requests[request_count:] if "/namespaces/trainer/" in request
    ]
    assert sorted(request.rpartition("/")[2] for request in lists) == ["cronjobs", "jobs", "jobsets", "pods"]


@pytest.mark.parametrize("kind", ["cronjobs.batch", "jobsets.jobset.x-k8s.io", "pods"])
def test_list_without_a_permission_shows_the_rest_and_a_note(cluster: Cluster, kind: str) -> None:
    put(cluster, "jobs", "pets")
    cluster.kube.denied.add(f"list {kind.partition('.')[0]}")
    done = cluster.quick("list", "gke")
    assert (done.returncode, done.stdout) == (0, "pets  waiting, not started yet\n")
    assert done.stderr == f"note       {kind} are not listed: this requires the permission list {kind}\n"


def test_list_without_any_permission_is_rejected(cluster: Cluster) -> None:
    cluster.kube.denied |= {"list jobs", "list cronjobs", "list jobsets", "list pods"}
    done = cluster.quick("list", "gke")
    assert (done.returncode, "cannot list resource" in done.stderr) == (2, True)
