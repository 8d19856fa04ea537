"""Pod objects in the states that a cluster reports."""

from __future__ import annotations

from typing import Any

BEGAN = "2026-11-27T11:00:00Z"


def pod(
    name: str, index: int, status: dict[str, Any], created: str = "2026-11-27T11:00:00Z"
) -> dict[str, Any]:
    return {
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": name, "creationTimestamp": created, "labels": {"batch.kubernetes.io/job-name": "pets"},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "spec": {"containers": [{"name": "trainer"}]},
        "status": status,
    }  # fmt: skip


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {
        "containerStatuses": [
            {"name": "trainer", "state": {"terminated": {"exitCode": code, "reason": reason}}}
        ]
    }


def running() -> dict[str, Any]:
    return {
        "phase": "Running",
        "containerStatuses": [{"name": "trainer", "state": {"running": {"startedAt": BEGAN}}}],
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {
        "containerStatuses": [
            {"name": "trainer", "state": {"waiting": {"reason": reason, "message": message}}}
        ]
    }
