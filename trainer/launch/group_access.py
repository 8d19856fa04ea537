"""Access control for the process group of a job: its secret and, on Kubernetes, its network policy.

Only jobs whose workers train one model together have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.distributed.process_info import GROUP_SECRET
from trainer.launch.plan import GROUP_LABEL, JobPlan

_KEY = "token"
DEPENDENTS = {"services": "Service", "secrets": "Secret", "networkpolicies": "NetworkPolicy"}
"""Objects that a job with several workers needs, by resource; each has the name of the job."""
ACCESS_RIGHTS = (("create", "secrets"), ("create", "networkpolicies.networking.k8s.io"))
"""Permissions that creating them requires, as (verb, resource)."""


def build_access_objects(plan: JobPlan, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the Secret and the NetworkPolicy of `plan`; none if its workers are not connected."""
    if not plan.is_connected:
        return []
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": dict(metadata),
        "type": "Opaque",
        "stringData": {_KEY: plan.group_secret},
    }
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": dict(metadata),
        # All ports, because NCCL uses arbitrary ones between the pods.
        "spec": {
            "podSelector": _own_pods(plan),
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": _own_pods(plan)}]}],
        },
    }
    return [secret, policy]


def _own_pods(plan: JobPlan) -> dict[str, Any]:
    return {"matchLabels": {GROUP_LABEL: plan.name}}


def secret_variables(plan: JobPlan) -> list[dict[str, Any]]:
    """Return the container variables of a pod that refer to the Secret."""
    reference = {"secretKeyRef": {"name": plan.name, "key": _KEY}}
    return [{"name": GROUP_SECRET, "valueFrom": reference}] if plan.is_connected else []


def secret_environment(plan: JobPlan) -> dict[str, str]:
    """Return the container variables, with the secret as a value, for a platform without Secrets."""
    return {GROUP_SECRET: plan.group_secret} if plan.is_connected else {}


def without_secret(objects: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return `objects` for printing, without the Secret, after a comment with the command that creates it."""
    secrets = [each["metadata"] for each in objects if each["kind"] == "Secret"]
    comment = "".join(
        "# First create the secret with which the workers recognize each other:\n"
        f"# kubectl create secret generic {secret['name']} --namespace {secret['namespace']} "
        f'--from-literal={_KEY}="$(openssl rand -hex 32)"\n'
        for secret in secrets
    )
    return comment, [each for each in objects if each["kind"] != "Secret"]
