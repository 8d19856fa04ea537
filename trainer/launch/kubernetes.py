"""Kubernetes manifests of a `JobPlan`, and validation of the names in them.

The objects are plain dictionaries in the order of creation: a Job, an Indexed Job after its headless Service
for several workers, a JobSet, or a CronJob.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer import __version__
from trainer.distributed.process_info import GROUP_SECRET, PORT, SERVICE, WORKERS
from trainer.errors import EXIT_CODES, UsageError
from trainer.launch.plan import (
    END_SECONDS,
    GROUP_LABEL,
    REPLICATED_JOB,
    RETRIES,
    RUN_NAME,
    SPEC,
    SPOT_GRACE_SECONDS,
    JobPlan,
)
from trainer.launch.state import CONTAINER, JOB_LABEL, JOBSET_LABEL, OURS

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


_USER = 65532
_KEEP_SECONDS = 7 * 24 * 3600
_LATE_SECONDS = 600
"""A scheduled job that could not start for this long is skipped."""
_CPUS, _MEMORY_GIB = 2, 8
"""CPUs and GiB to request for each accelerator; the machine types have more."""
_DISK = "10Gi"
"""Ephemeral storage that any pod gets in Autopilot clusters."""
_CONTROL_PORT = PORT + 1000
_DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
"""A DNS label of RFC 1123; names with dots between labels are DNS subdomains."""
_LONGEST_LABEL, _LONGEST_SUBDOMAIN = 63, 253
_DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


@dataclass(frozen=True)
class KubernetesCluster:
    """Properties of the target cluster."""

    namespace: str = "trainer"
    service_account: str = "trainer"
    has_gke_labels: bool = True
    """Whether nodes have GKE's accelerator labels; if not, any node with GPUs is accepted."""


def check_namespace(name: str) -> None:
    """Raise UsageError unless `name` is a valid namespace name, a DNS label."""
    if not re.fullmatch(_DNS_LABEL, name):
        raise UsageError(
            "The value of --namespace is invalid.",
            f"Use at most {_LONGEST_LABEL} lowercase letters, digits and hyphens.",
            f"{name!r}",
        )


def check_names(namespace: str, service_account: str, queue: str | None) -> None:
    """Raise UsageError for an invalid name; a queue is a DNS subdomain of the length of a label at most."""
    check_namespace(namespace)
    _check_subdomain("--service-account", service_account, _LONGEST_SUBDOMAIN)
    if queue is not None:
        _check_subdomain("--queue", queue, _LONGEST_LABEL)


def _check_subdomain(option: str, name: str, max_length: int) -> None:
    if len(name) > max_length or not re.fullmatch(rf"{_DNS_LABEL}(\.{_DNS_LABEL})*", name):
        raise UsageError(
            f"The value of {option} is invalid.",
            f"Use at most {max_length} characters: lowercase letters, digits and hyphens, with single dots "
            "between parts.",
            f"{name!r}",
        )


def objects_of(plan: JobPlan, cluster: KubernetesCluster) -> list[dict[str, Any]]:
    """Return the objects of `plan`."""
    job = _job_spec(plan, cluster)
    access = build_access_objects(plan, _metadata(plan, cluster, is_queued=False))
    if plan.is_jobset:
        return [*access, _job_set(plan, cluster, job)]
    if plan.schedule is None:
        main = {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(plan, cluster), "spec": job}
    else:
        main = {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": _metadata(plan, cluster, is_queued=False),
            "spec": {
                "schedule": plan.schedule,
                "timeZone": plan.time_zone,
                "concurrencyPolicy": "Forbid",
                "startingDeadlineSeconds": _LATE_SECONDS,
                "successfulJobsHistoryLimit": 3,
                "failedJobsHistoryLimit": 3,
                "jobTemplate": {"metadata": {"labels": _labels(plan)}, "spec": job},
            },
        }
    return [*([_service(plan, cluster)] if plan.is_connected else []), *access, main]


def _job_set(plan: JobPlan, cluster: KubernetesCluster, job: dict[str, Any]) -> dict[str, Any]:
    """Return the JobSet with `job` as its only job: it names the pods itself and restarts all of them.

    A preempted pod fails the job, so that all pods restart; this restart does not count towards the maximum.
    After any other temporary failure the other workers lose their peer and end, too. Requires JobSet 0.10.
    """
    job.pop("ttlSecondsAfterFinished")  # set on the JobSet instead
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(plan, cluster),
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": plan.name, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": RETRIES,
                "rules": [
                    {
                        "name": "disruption",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                        "onJobFailureMessagePatterns": ["matching FailJob rule at index 0$"],
                    },
                    {
                        "name": "final",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"],
                    },
                ],
            },
            "ttlSecondsAfterFinished": _KEEP_SECONDS,
            "replicatedJobs": [
                {
                    "name": REPLICATED_JOB,
                    "replicas": 1,
                    "template": {"metadata": {"labels": _labels(plan, is_queued=False)}, "spec": job},
                }
            ],
        },
    }


def failure_policy(on_disruption: Literal["Ignore", "FailJob"] = "Ignore") -> dict[str, Any]:
    """Return the podFailurePolicy for the table of exit codes; the first matching rule applies."""
    rules: list[dict[str, Any]] = [{"action": on_disruption, "onPodConditions": [_DISRUPTED]}]
    for action in ("FailJob", "Ignore"):
        codes = sorted(code for code, (_, policy) in EXIT_CODES.items() if policy == action)
        on_codes = {"containerName": CONTAINER, "operator": "In", "values": codes}
        rules.append({"action": action, "onExitCodes": on_codes})
    return {"rules": rules}


def _labels(plan: JobPlan, is_queued: bool = True) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/name": "trainer",
        "app.kubernetes.io/version": __version__,
        OURS[0]: OURS[1],
    }
    return labels | ({"kueue.x-k8s.io/queue-name": plan.queue} if plan.queue and is_queued else {})


def _metadata(plan: JobPlan, cluster: KubernetesCluster, is_queued: bool = True) -> dict[str, Any]:
    return {"name": plan.name, "namespace": cluster.namespace, "labels": _labels(plan, is_queued)}


def _service(plan: JobPlan, cluster: KubernetesCluster) -> dict[str, Any]:
    """Return the headless Service that gives the pods of several workers their host names."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan, cluster, is_queued=False),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # the rendezvous takes place before any pod is ready
            "selector": {GROUP_LABEL: plan.name},
            "ports": [{"name": "tensorflow", "port": PORT}, {"name": "control", "port": _CONTROL_PORT}],
        },
    }


def _job_spec(plan: JobPlan, cluster: KubernetesCluster) -> dict[str, Any]:
    indexed = {"completionMode": "Indexed", "completions": plan.workers, "parallelism": plan.workers}
    return {
        **(indexed if plan.workers > 1 or plan.is_jobset else {}),
        # If one of several workers fails, all do. A JobSet has its own restart limit.
        "backoffLimit": 0 if plan.is_jobset else RETRIES * plan.workers,
        "activeDeadlineSeconds": plan.deadline_seconds,
        "ttlSecondsAfterFinished": _KEEP_SECONDS,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": failure_policy("FailJob" if plan.is_jobset else "Ignore"),
        "template": {
            "metadata": {"labels": _labels(plan, is_queued=False) | {GROUP_LABEL: plan.name}},
            "spec": _pod(plan, cluster),
        },
    }


def _pod(plan: JobPlan, cluster: KubernetesCluster) -> dict[str, Any]:
    grace = SPOT_GRACE_SECONDS if plan.is_spot else int(plan.spec.train.grace_seconds) + END_SECONDS
    return {
        "restartPolicy": "Never",
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        **({"subdomain": plan.name} if plan.is_connected and not plan.is_jobset else {}),
        **_placement(plan, cluster),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(plan)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            # TensorFlow and NCCL share memory between processes and devices.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }


def _placement(plan: JobPlan, cluster: KubernetesCluster) -> dict[str, Any]:
    """Return the node selector and the tolerations."""
    accelerator, selector, tolerations = plan.accelerator, {}, []
    if accelerator.kind == "gpu":
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
        if cluster.has_gke_labels:
            selector["cloud.google.com/gke-accelerator"] = accelerator.gke
    if accelerator.kind == "tpu":
        tolerations.append({"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"})
        selector["cloud.google.com/gke-tpu-accelerator"] = accelerator.gke
        selector["cloud.google.com/gke-tpu-topology"] = accelerator.topology
    if plan.is_spot and cluster.has_gke_labels:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    return ({"nodeSelector": selector} if selector else {}) | (
        {"tolerations": tolerations} if tolerations else {}
    )


def _container(plan: JobPlan) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": plan.image,
        "args": [_escape(argument) for argument in plan.arguments],
        "env": _environment(plan),
        "resources": _resources(plan),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
        **(
            {"ports": [{"containerPort": PORT}, {"containerPort": _CONTROL_PORT}]}
            if plan.is_connected
            else {}
        ),
    }


def _environment(plan: JobPlan) -> list[dict[str, Any]]:
    # The run has the job's name: each job of a schedule is a new run, and a restart resumes the same run.
    label = JOBSET_LABEL if plan.is_jobset else JOB_LABEL
    run_name = {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}}
    variables = {SPEC: _escape(plan.spec_text)}
    if plan.workers > 1:
        variables[WORKERS] = str(plan.workers)
    if plan.is_connected:
        variables[SERVICE] = plan.name
    return [
        {"name": RUN_NAME, "valueFrom": run_name},
        *secret_variables(plan),
        *({"name": name, "value": value} for name, value in variables.items()),
    ]


def _escape(text: str) -> str:
    """Return `text` with $ escaped, as Kubernetes expands $(NAME) to a variable and $$ to $."""
    return text.replace("$", "$$")


def _resources(plan: JobPlan) -> dict[str, Any]:
    resource = {"cpu": None, "gpu": "nvidia.com/gpu", "tpu": "google.com/tpu"}[plan.accelerator.kind]
    devices = {resource: str(plan.accelerator.count)} if resource else {}
    count = max(1, plan.accelerator.count)
    memory = f"{_MEMORY_GIB * count}Gi"
    requests = {"cpu": str(_CPUS * count), "memory": memory, "ephemeral-storage": _DISK}
    return {"requests": requests | devices, "limits": {"memory": memory} | devices}
