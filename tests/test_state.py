"""How a job on Kubernetes goes, and why, in words."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from kube_pods import BEGAN, ended, pod, waiting

from trainer.launch.state import State, state_of

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=timezone.utc)


def state(job: dict[str, Any], *pods: dict[str, Any]) -> State:
    return state_of({"metadata": {"name": "pets"}} | job, pods, NOW)


def failed(reason: str) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason}]}}


@pytest.mark.parametrize(
    ("job", "status", "word", "words"),
    [
        ({}, waiting("ImagePullBackOff", "no such tag"), "waiting", "can't be pulled"),
        ({}, waiting("ContainerCreating"), "waiting", "is being made"),
        ({}, waiting("CreateContainerConfigError", "no secret"), "waiting", "ConfigError (no secret)"),
        ({}, {"conditions": [{"type": "PodScheduled", "reason": "Unschedulable", "message": "0/3 nodes"}]},
         "waiting", "no machine takes it: 0/3 nodes"),
        ({}, {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Preempted"}]},
         "waiting", "taken away (Preempted)"),
        ({}, {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Preempted"}]}
         | ended(137), "waiting", "taken away (Preempted)"),
        ({}, {"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"} | ended(137),
         "waiting", "ended from outside: Evicted (low on ephemeral-storage)"),
        (failed("PodFailurePolicy"), ended(65), "failed", "exit code 65: the data can't be used"),
        (failed("BackoffLimitExceeded"), ended(137, "OOMKilled"), "failed", "out of memory"),
        (failed("BackoffLimitExceeded"), ended(139), "failed", "exit code 139, ended by signal 11"),
        (failed("DeadlineExceeded"), {}, "failed", "longer than its deadline"),
        ({"spec": {"suspend": True}}, {}, "suspended", "holds it back"),
        ({"status": {"conditions": [{"type": "Complete", "status": "True"}], "startTime": BEGAN,
                     "completionTime": "2026-11-27T11:41:00Z"}}, {}, "finished", "took 41 min"),
    ],
)  # fmt: skip
def test_the_reason_is_told(job: dict[str, Any], status: dict[str, Any], word: str, words: str) -> None:
    found = state(job, pod("pets-0", 0, status))
    assert found.word == word
    assert words in "\n".join(found.text())


def test_of_several_workers_each_newest_pod_is_told() -> None:
    found = state(
        {"spec": {"parallelism": 3}, "status": {"ready": 1, "startTime": "2026-11-27T11:19:00Z"}},
        pod("pets-0-a", 0, {}),
        pod("pets-1-a", 1, ended(75), "2026-11-27T11:00:00Z"),
        pod("pets-1-b", 1, waiting("ContainerCreating"), "2026-11-27T11:40:00Z"),
        pod("pets-2-a", 2, ended(143)),
    )
    assert found.text() == [
        "pets  running, 1 of 3 workers ready, for 41 min",
        "  worker 1: the container is being made",
        "  worker 2: exit code 143: stopped on request, checkpoint safe; where the last save did not finish, "
        "the one before it",
    ]
