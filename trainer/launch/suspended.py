"""Reasons why a suspended Job or JobSet does not start: its Kueue queue, or who set `spec.suspend`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.launch.kubectl import Kubectl, resource_of
from trainer.launch.kubectl_errors import NO_KIND, KubectlError

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
LOCAL_QUEUES, _WORKLOADS = "localqueues.kueue.x-k8s.io", "workloads.kueue.x-k8s.io"
_JOB_LABEL = "kueue.x-k8s.io/job-uid"
"""Label of the workload that Kueue creates for a job."""


def explain_suspension(kubectl: Kubectl, main: Mapping[str, Any]) -> str:
    """Return why `main`, a suspended Job or JobSet, does not start. Raises TemporaryError."""
    queue = main["metadata"].get("labels", {}).get(QUEUE_LABEL)
    try:
        if queue is None:
            return _who_suspended(kubectl, main)
        workloads = kubectl.find(_WORKLOADS, "-l", f"{_JOB_LABEL}={main['metadata'].get('uid', '')}")
        if workloads:
            return f"queue {queue}: {_of_workload(workloads[-1])}"
        is_there = kubectl.get(LOCAL_QUEUES, queue) is not None
    except KubectlError as error:
        if error.reason == NO_KIND:
            return f"queue {queue}: the cluster has no Kueue, and so nothing starts it"
        return f"the reason can't be read: {error.line}"
    reason = "Kueue has not created a workload for it yet" if is_there else "there is no such local queue"
    return f"queue {queue}: {reason}"


def _of_workload(workload: Mapping[str, Any]) -> str:
    """Return the first blocking condition of a Kueue workload."""
    if workload.get("spec", {}).get("active") is False:
        return "its workload is deactivated (spec.active: false)"
    conditions = {each["type"]: each for each in workload.get("status", {}).get("conditions", [])}
    for kind, state in (("QuotaReserved", "False"), ("Admitted", "False"), ("Evicted", "True")):
        found = conditions.get(kind, {})
        if found.get("status") == state:
            return str(found.get("message") or found.get("reason") or kind)
    return "waiting in the queue"


def _who_suspended(kubectl: Kubectl, main: Mapping[str, Any]) -> str:
    """Return the program that set `spec.suspend`, and when, as recorded in `managedFields`."""
    kind, name = main["kind"].lower(), main["metadata"]["name"]
    found = kubectl.get(resource_of(main), name, "--show-managed-fields") or {}
    fields = [
        each for each in found.get("metadata", {}).get("managedFields", [])
        if "f:suspend" in each.get("fieldsV1", {}).get("f:spec", {})
    ]  # fmt: skip
    resume = f"""`kubectl patch {kind} {name} --type merge -p '{{"spec": {{"suspend": false}}}}'` starts it"""
    if not fields:
        return f"no queue is named; {resume}"
    last = max(fields, key=lambda each: str(each.get("time", "")))
    who, when = last.get("manager", "a program"), last.get("time", "an unknown time")
    return f"{who} set spec.suspend at {when}; {resume}"
