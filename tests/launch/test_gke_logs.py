"""`trainer logs gke`: reasons for waiting, changes of the pod, and the exit code of the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.kube_cluster import Cluster
from helpers.kube_pods import ended, pod, running, waiting

from trainer.errors import StoppedError, TrainerError
from trainer.launch.cluster_jobs import ClusterJobs, LogFollower
from trainer.launch.kubectl import Kubectl

UNSCHEDULED = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}],
}  # fmt: skip
PATIENCE_SECONDS = 30


class Following:
    """`logs -f` of the job pets in a thread, while the test changes the cluster."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, worker: int = 0) -> None:
        for name in ("KUBECONFIG", "HOME"):
            monkeypatch.setenv(name, cluster.environment[name])
        self.kube = cluster.kube
        self.lines: list[str] = []
        self.notes: list[str] = []
        self.error: TrainerError | None = None
        self.changed = threading.Condition()
        jobs = ClusterJobs(Kubectl("trainer"))
        self.follower = LogFollower(jobs, "pets", worker, lambda text: self._add(self.notes, text), 0.05)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            for line in self.follower.lines():
                self._add(self.lines, line)
        except TrainerError as error:
            self.error = error

    def _add(self, texts: list[str], text: str) -> None:
        with self.changed:
            texts.append(text)
            self.changed.notify_all()

    def until(self, words: str) -> None:
        """Wait for a note or a line that contains `words`."""
        with self.changed:
            texts = (self.notes, self.lines)
            is_there = self.changed.wait_for(
                lambda: any(words in text for entries in texts for text in entries), PATIENCE_SECONDS
            )
        assert is_there, (words, self.notes, self.lines)

    def set(self, name: str, status: dict[str, Any], **more: Any) -> None:
        """Set the status of a pod."""
        self.kube.put("pods", "trainer", pod(name, more.pop("index", 0), status, **more))

    def end(self, kind: str = "Complete", resource: str = "jobs", **condition: str) -> int:
        """Finish the job; return the exit code of the follower."""
        job = self.kube.objects["trainer", resource, "pets"]
        job["status"] = {"conditions": [{"type": kind, "status": "True", **condition}]}
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()
        return self.error.exit_code if self.error else 0


@pytest.fixture
def job(cluster: Cluster) -> dict[str, Any]:
    value = {"metadata": {"name": "pets"}, "spec": {"parallelism": 1}}
    return cluster.kube.put("jobs", "trainer", value)


@pytest.fixture
def following(cluster: Cluster, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    follower = Following(cluster, monkeypatch)
    yield follower
    cluster.kube.objects.clear()
    follower.thread.join(PATIENCE_SECONDS)


def test_following_continues_with_next_pod_until_job_ends(
    following: Following,
) -> None:
    following.until("no pod with a log: pets is waiting")
    following.set("pets-a", UNSCHEDULED)
    following.until(
        "waiting for pets-a: no node is suitable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    )
    following.set("pets-a", waiting("ContainerCreating"))
    following.until("waiting for pets-a: the container is being created")
    following.set("pets-a", waiting("ImagePullBackOff", "no such tag"))
    following.until("cannot pull the image")
    following.kube.logs["pets-a"] = "epoch 1\nepoch 2\n"
    following.kube.drops = 1  # the connection breaks once; no line is repeated or lost
    following.set("pets-a", running())
    following.until("epoch 2")
    following.kube.logs["pets-a"] += "epoch 3\nlost a peer\n"
    following.set("pets-a", ended(75))
    following.until("exit code 75")
    following.set("pets-b", waiting("ContainerCreating"), created="2026-11-27T12:00:00Z")
    following.until("waiting for pets-b")
    following.kube.logs["pets-b"] = "epoch 3 again\n"
    following.set("pets-b", {"phase": "Succeeded"} | ended(0), created="2026-11-27T12:00:00Z")
    following.until("epoch 3 again")
    assert following.end() == 0
    assert following.lines == ["epoch 1", "epoch 2", "epoch 3", "lost a peer", "epoch 3 again"]
    assert len(following.notes) == len(set(following.notes))  # each reason once, without a busy loop
    assert not any(request.startswith("POST") for request in following.kube.requests)


def test_following_a_failed_job_exits_with_code_of_pod(following: Following) -> None:
    following.kube.logs["pets-a"] = "no classes\n"
    following.set("pets-a", ended(65))
    following.until("no classes")
    assert following.end("Failed", reason="PodFailurePolicy") == 65
    assert "exit code 65: the data cannot be used" in str(following.error)


def test_following_skips_pod_evicted_before_start(following: Following) -> None:
    following.set("pets-a", {"phase": "Failed", "reason": "Evicted", "message": "low on disk"})
    following.until("terminated by Kubernetes: Evicted (low on disk)")
    following.kube.logs["pets-b"] = "epoch 1\n"
    following.set("pets-b", running(), created="2026-11-27T12:00:00Z")
    following.until("epoch 1")
    following.set("pets-b", ended(137, "OOMKilled"), created="2026-11-27T12:00:00Z")
    assert following.end("Failed", reason="BackoffLimitExceeded") == 137


def test_following_a_jobset_continues_after_restarts(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"jobset.sigs.k8s.io/jobset-name": "pets"}
    owner = {"kind": "JobSet", "name": "pets", "uid": "uid-pets"}
    policy = {"maxRestarts": 3}
    jobset = cluster.kube.put(
        "jobsets", "trainer", {"metadata": {"name": "pets"}, "spec": {"failurePolicy": policy}}
    )

    def child(attempt: str, code: int | None) -> None:
        metadata = {"name": "pets-worker-0", "labels": labels, "ownerReferences": [owner], "uid": attempt}
        condition = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
        status = {"conditions": [condition] if code else []}
        value = {"metadata": metadata, "spec": {"parallelism": 2}, "status": status}
        cluster.kube.put("jobs", "trainer", value)
        name = f"pets-worker-0-1-{attempt}"
        worker = pod(name, 1, ended(code) if code else running(), f"2026-11-27T1{attempt}:00:00Z")
        worker["metadata"]["labels"] = {
            "batch.kubernetes.io/job-name": "pets-worker-0", "batch.kubernetes.io/controller-uid": attempt
        }  # fmt: skip
        cluster.kube.logs[name] = f"attempt {attempt}\n"
        cluster.kube.put("pods", "trainer", worker)

    following = Following(cluster, monkeypatch, worker=1)
    following.until("pets is waiting, its job has not been created yet")
    child("1", 69)
    following.until(
        "pets is restarting, its retries are exhausted; all workers restart (0 of 3 restarts used)"
    )
    jobset["status"] = {"restarts": 1, "restartsCountTowardsMax": 1}
    child("2", None)
    following.until("attempt 2")
    child("2", 70)
    assert following.end("Failed", "jobsets", reason="FailJobSetFailurePolicyAction") == 70
    assert following.lines == ["attempt 1", "attempt 2"]


def test_following_tolerates_temporary_failures_of_api_server(following: Following) -> None:
    following.until("no pod with a log")
    following.kube.outages = 3
    following.until("The cluster has a temporary problem. Try again later. Received: Error from server (Serv")
    following.set("pets-a", running())
    following.kube.logs["pets-a"] = "epoch 1\n"
    following.until("epoch 1")
    following.set("pets-a", ended(0))
    assert following.end() == 0


def test_following_stops_when_job_is_deleted(following: Following) -> None:
    following.until("no pod with a log")
    del following.kube.objects["trainer", "jobs", "pets"]
    following.thread.join(PATIENCE_SECONDS)
    assert isinstance(following.error, StoppedError)


def test_logs_without_follow_print_current_log_and_pending_pod(cluster: Cluster, job: dict[str, Any]) -> None:
    def logs(*words: str) -> tuple[int, str, str]:
        done = cluster.quick("logs", "gke", "pets", *words)
        return done.returncode, done.stdout, done.stderr

    cluster.kube.put("pods", "trainer", pod("pets-a", 0, ended(75)))
    cluster.kube.logs["pets-a"] = "lost a peer\n"
    cluster.kube.put("pods", "trainer", pod("pets-b", 0, UNSCHEDULED, "2026-11-27T12:00:00Z"))
    code, output, notes = logs()
    assert (code, output) == (0, "lost a peer\n")
    assert "waiting for pets-b: no node is suitable" in notes
    assert "Choose an index from 0 to 0. Received: --worker 1" in logs("--worker", "1")[2]
    cluster.kube.put("pods", "trainer", pod("pets-b", 0, ended(2), "2026-11-27T12:00:00Z"))
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]}
    assert logs()[0] == 0
    code, _, notes = logs("-f")
    assert (code, "exit code 2: usage or spec error" in notes) == (2, True)


def test_interrupt_stops_following_and_kubectl(cluster: Cluster, job: dict[str, Any]) -> None:
    cluster.kube.put("pods", "trainer", pod("pets-a", 0, running()))
    cluster.kube.logs["pets-a"] = "epoch 1\n"
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", "logs", "gke", "pets", "-f"], env=cluster.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "epoch 1\n"
    os.killpg(process.pid, signal.SIGINT)  # a terminal signals the whole process group
    _, output = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, "Traceback" in output) == (143, False), output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
