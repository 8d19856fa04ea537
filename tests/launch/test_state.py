"""State and failure reasons of jobs and JobSets on Kubernetes, as text."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from helpers.kube_pods import BEGAN, ended, pod, waiting

from trainer.launch.accelerators import find_accelerator
from trainer.launch.kubernetes import KubernetesCluster, objects_of
from trainer.launch.plan import JobPlan
from trainer.launch.state import State, job_state, jobset_state
from trainer.spec import load_spec

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=timezone.utc)


def state(job: dict[str, Any], *pods: dict[str, Any]) -> State:
    return job_state({"metadata": {"name": "pets"}} | job, pods, NOW)


def failed(reason: str) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason}]}}


@pytest.mark.parametrize(
    ("job", "status", "word", "words"),
    [
        ({}, waiting("ImagePullBackOff", "no such tag"), "waiting", "cannot pull the image"),
        ({}, waiting("ContainerCreating"), "waiting", "is being created"),
        ({}, waiting("CreateContainerConfigError", "no secret"), "waiting", "ConfigError (no secret)"),
        ({}, {"conditions": [{"type": "PodScheduled", "reason": "Unschedulable", "message": "0/3 nodes"}]},
         "waiting", "no node is suitable: 0/3 nodes"),
        ({}, {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Preempted"}]},
         "waiting", "preempted (Preempted)"),
        ({}, {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Preempted"}]}
         | ended(137), "waiting", "preempted (Preempted)"),
        ({}, {"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"} | ended(137),
         "waiting", "terminated by Kubernetes: Evicted (low on ephemeral-storage)"),
        (failed("PodFailurePolicy"), ended(65), "failed", "exit code 65: the data cannot be used"),
        (failed("BackoffLimitExceeded"), ended(137, "OOMKilled"), "failed", "out of memory"),
        (failed("BackoffLimitExceeded"), ended(139), "failed", "exit code 139, terminated by signal 11"),
        (failed("DeadlineExceeded"), {}, "failed", "its deadline was exceeded"),
        ({"spec": {"suspend": True}}, {}, "suspended", "spec.suspend is set"),
        ({"status": {"conditions": [{"type": "Complete", "status": "True"}], "startTime": BEGAN,
                     "completionTime": "2026-11-27T11:41:00Z"}}, {}, "finished", "took 41 min"),
    ],
)  # fmt: skip
def test_job_state_job_contains_reason(
    job: dict[str, Any], status: dict[str, Any], word: str, words: str
) -> None:
    result = state(job, pod("pets-0", 0, status))
    assert result.word == word
    assert words in "\n".join(result.text())


def test_state_shows_newest_pod_of_each_worker() -> None:
    result = state(
        {"spec": {"parallelism": 3}, "status": {"ready": 1, "startTime": "2026-11-27T11:19:00Z"}},
        pod("pets-0-a", 0, {}),
        pod("pets-1-a", 1, ended(75), "2026-11-27T11:00:00Z"),
        pod("pets-1-b", 1, waiting("ContainerCreating"), "2026-11-27T11:40:00Z"),
        pod("pets-2-a", 2, ended(143)),
    )
    assert result.text() == [
        "pets  running, 1 of 3 workers ready, for 41 min",
        "  worker 1: the container is being created",
        "  worker 2: exit code 143: stopped on request; the last complete checkpoint is kept",
    ]


@pytest.mark.parametrize(
    ("reason", "pods", "code"),
    [
        ("PodFailurePolicy", [ended(75), ended(65)], 65),
        ("PodFailurePolicy", [ended(2), ended(143)], 2),
        ("BackoffLimitExceeded", [ended(1), ended(137, "OOMKilled")], 137),
        ("BackoffLimitExceeded", [ended(139)], 139),
        ("DeadlineExceeded", [], 1),
    ],
)
def test_failed_job_has_exit_code_of_failed_pod(reason: str, pods: list[dict[str, Any]], code: int) -> None:
    result = state(failed(reason), *(pod(f"pets-{index}", index, each) for index, each in enumerate(pods)))
    assert result.exit_code == code


def test_failed_job_of_several_workers_names_failed_worker() -> None:
    several = {"spec": {"parallelism": 3, "completionMode": "Indexed"}}
    left = pod("pets-2-x", 2, ended(65))  # Kubernetes has deleted the pods of the other workers
    assert state(several | failed("PodFailurePolicy"), left).lines == (
        "worker 2: exit code 65: the data cannot be used",
    )
    job = several | failed("PodFailurePolicy")
    job["status"]["conditions"][0]["message"] = (
        "Container trainer for pod t/pets-1-abcde failed with exit code 70 matching FailJob rule at index 1"
    )
    result = state(job, pod("pets-0-x", 0, ended(143)))  # the failed pod is gone; worker 0's still exists
    assert result.exit_code == 70
    assert result.lines[0].startswith("worker 1: exit code 70: diverged")
    assert result.lines[1].startswith("worker 0: exit code 143")


def jobset(conditions: list[dict[str, Any]], restarts: int = 0, **spec: Any) -> dict[str, Any]:
    *_, made = objects_of(
        JobPlan(
            "gke", "pets", load_spec(None, "demo", (), {"output": "gs://b/r"}), "r/t:gpu",
            find_accelerator("cpu"), workers=2, is_jobset=True,
        ),
        KubernetesCluster(),
    )  # fmt: skip
    made["spec"] |= spec
    status = {"conditions": conditions, "restarts": restarts, "restartsCountTowardsMax": restarts}
    return made | {"status": status}


@pytest.mark.parametrize(
    ("conditions", "restarts", "job", "word", "words", "code"),
    [
        ([], 0, None, "waiting", "its job has not been created yet", None),
        ([], 2, None, "restarting", "recreated, after 2 restarts", None),
        ([], 1, {"spec": {"parallelism": 2}, "status": {"ready": 2, "startTime": BEGAN}}, "running",
         "2 of 2 workers ready, for 60 min, after 1 restart", None),
        ([], 1, failed("BackoffLimitExceeded"), "restarting",
         "its retries are exhausted; all workers restart (1 of 3 restarts used)", None),
        ([], 3, failed("BackoffLimitExceeded"), "failed", "retries are exhausted", None),
        ([], 0, failed("PodFailurePolicy"), "failed", "that is not retried", None),
        ([], 3, {"status": {"conditions": [{
            "type": "Failed", "status": "True", "reason": "PodFailurePolicy",
            "message": "Pod trainer/p has condition DisruptionTarget matching FailJob rule at index 0"}]}},
         "restarting", "all workers restart", None),
        ([{"type": "Failed", "status": "True", "reason": "ReachedMaxRestarts"}], 3,
         failed("BackoffLimitExceeded"), "failed", "retries are exhausted, after 3 restarts", 69),
        ([{"type": "Failed", "status": "True", "reason": "FailJobSetFailurePolicyAction"}], 0, None, "failed",
         "that is not retried", 1),
        ([{"type": "Completed", "status": "True", "reason": "AllJobsCompleted"}], 0, None, "finished", "", 0),
        ([{"type": "Suspended", "status": "True", "reason": "SuspendedJobs"}], 0, None, "suspended",
         "spec.suspend is set", None),
    ],
)  # fmt: skip
def test_jobset_fails_only_when_no_restart_follows(
    conditions: list[dict[str, Any]], restarts: int, job: dict[str, Any] | None, word: str, words: str,
    code: int | None,
) -> None:  # fmt: skip
    child = None if job is None else {"metadata": {"name": "pets-worker-0"}} | job
    pods = [pod("pets-worker-0-1-x", 1, ended(69))] if job and "conditions" in job["status"] else []
    result = jobset_state(jobset(conditions, restarts), child, pods, NOW)
    assert (result.name, result.word, result.exit_code) == ("pets", word, code)
    assert words in result.detail
