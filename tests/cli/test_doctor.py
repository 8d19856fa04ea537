"""`trainer doctor`: the state of each prerequisite, and its remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.kube_cluster import needs_kubectl
from helpers.kube_server import Kube, kube_server
from helpers.trainer_process import error_line
from helpers.vertex_server import PROJECT, REGION, Vertex, vertex_server

OUTPUT = ["--output", "gs://bucket/runs"]


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command without network access outside this machine."""
    return subprocess.run(
        [sys.executable, "-m", "trainer.cli", "doctor", *words],
        env={**os.environ, "NO_GCE_CHECK": "true", "DOCKER_HOST": "unix:///nowhere", **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def vertex() -> Iterator[Vertex]:
    with vertex_server() as server:
        yield server


def where(vertex: Vertex) -> list[str]:
    return ["--project", PROJECT, "--region", REGION, "--endpoint", vertex.address]


def state_of(said: str, name: str) -> str:
    """Return the state of the check `name`: ok, wrong or unknown."""
    return next(line.split()[0] for line in said.splitlines() if f" {name}: " in line)


def test_complete_project_is_ready(vertex: Vertex) -> None:
    vertex.project.quotas = {"custom_model_training_nvidia_l4_gpus": 8}
    done = doctor(
        "vertex", *where(vertex), *OUTPUT, "--accelerator", "nvidia-l4:4", "--workers", "2",
        "--service-account", "me@acme.iam",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("credentials", "API aiplatform", "API cloudscheduler", "API logging",
                 "permissions", f"region {REGION}", "account me@acme.iam", "bucket bucket",
                 f"quota in {REGION}"):  # fmt: skip
        assert state_of(done.stdout, name) == "ok", name
    assert "custom_model_training_nvidia_l4_gpus: 8, 8 required" in done.stdout
    last = done.stdout.splitlines()[-1]  # without a Docker engine the image cannot be checked
    assert last == "unknown    9 of 10 checks for vertex passed; not checked: image"
    assert not vertex.jobs


@pytest.mark.parametrize(
    ("change", "words", "name", "remedy"),
    [
        ({"disabled": {"aiplatform"}}, [], "API aiplatform", "gcloud services enable aiplatform"),
        ({"lacking": {"aiplatform.customJobs.create"}}, [], "permissions", "roles/aiplatform.user"),
        ({"buckets": set()}, [], "bucket bucket", "gcloud storage buckets create gs://bucket"),
        ({"quotas": {"custom_model_training_nvidia_l4_gpus": 1}}, ["--workers", "2"],
         f"quota in {REGION}", "Request more custom_model_training_nvidia_l4_gpus"),
        ({"quotas": {"custom_model_training_preemptible_nvidia_l4_gpus": 0}}, ["--spot"],
         f"quota in {REGION}", "Request more custom_model_training_preemptible_nvidia_l4_gpus"),
        ({"lacking": {"iam.serviceAccounts.actAs"}}, ["--service-account", "me@acme.iam"],
         "account me@acme.iam", "roles/iam.serviceAccountUser"),
        ({"name": "other"}, [], f"project {PROJECT}", "Check the names."),
    ],
)  # fmt: skip
def test_failed_check_has_a_remedy(
    vertex: Vertex, change: dict[str, Any], words: list[str], name: str, remedy: str
) -> None:
    for key, value in change.items():
        setattr(vertex.project, key, value)
    done = doctor("vertex", *where(vertex), *OUTPUT, *words)
    assert "Not ready for vertex" in error_line(done, 2)
    assert state_of(done.stdout, name) == "wrong"
    lines = done.stdout.splitlines()
    place = next(index for index, line in enumerate(lines) if f" {name}: " in line)
    assert remedy in lines[place + 1]
    assert lines[place + 1].startswith(" " * 11)
    assert [line.split()[0] for line in lines if line[0] != " "].count("wrong") == 1


def test_check_without_permission_is_unknown_and_not_an_error(vertex: Vertex) -> None:
    vertex.project.lacking = {"storage.objects.create"}
    done = doctor("vertex", *where(vertex), "--accelerator", "nvidia-h100-80gb:8", *OUTPUT)
    assert done.returncode == 0, done.stderr
    assert state_of(done.stdout, "bucket bucket") == "unknown"
    assert "you do not have storage.objects.create" in done.stdout
    assert "roles/storage.objectUser" in done.stdout
    assert "custom_model_training_nvidia_h100_gpus is not listed" in done.stdout
    assert state_of(doctor("vertex", *where(vertex)).stdout, "bucket") == "unknown"


def test_missing_credentials_or_project_are_reported_with_a_remedy(tmp_path: Path) -> None:
    assert "There is no Google Cloud project. Set --project ID." in error_line(
        doctor("vertex", GOOGLE_CLOUD_PROJECT=""), 2
    )
    done = doctor("vertex", "--project", "p", HOME=str(tmp_path), GOOGLE_APPLICATION_CREDENTIALS="/no.json")
    error_line(done, 2)
    assert state_of(done.stdout, "credentials") == "wrong"
    assert "Create them with `gcloud auth application-default login`" in done.stdout


def test_other_checks_run_without_an_engine(tmp_path: Path) -> None:
    done = doctor("docker", "--output", str(tmp_path / "runs"))
    error_line(done, 2)
    assert state_of(done.stdout, "engine") == "wrong"
    assert "Start Docker" in done.stdout
    assert state_of(done.stdout, "output") == "ok"
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("")
    done = doctor("docker", "--output", str(tmp_path / "file" / "runs"))
    assert state_of(done.stdout, "output") == "wrong"


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[tuple[Kube, dict[str, str]]]:
    with kube_server(tmp_path) as (kube, config):
        kube.put(
            "serviceaccounts",
            "trainer",
            {"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "trainer"}},
        )
        credentials = {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere.json"}
        yield kube, {"KUBECONFIG": str(config), "HOME": str(tmp_path), **credentials}


@needs_kubectl
def test_complete_cluster_is_ready(kube: tuple[Kube, dict[str, str]], vertex: Vertex) -> None:
    server, environment = kube
    labels = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    server.put("nodes", "", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n", "labels": labels}})
    vertex.project.compute_quotas = {"NVIDIA_L4_GPUS": (4, 1)}
    words = ["gke", *OUTPUT, *where(vertex), "--accelerator", "nvidia-l4:1", "--workers", "3"]
    done = doctor(*words, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (
        "kubectl",
        "cluster",
        "serviceaccount trainer",
        "permissions",
        "accelerator",
        f"quota in {REGION}",
    ):
        assert state_of(done.stdout, name) == "ok", name
    assert "NVIDIA_L4_GPUS: 3, 3 required" in done.stdout
    assert "all regions" not in done.stdout
    vertex.project.global_quotas = {"GPUS_ALL_REGIONS": (8, 6)}
    short = doctor(*words, **environment)
    assert state_of(short.stdout, "quota in all regions") == "wrong"
    assert "GPUS_ALL_REGIONS: 2, 3 required" in short.stdout
    assert "here, namespace trainer" in done.stdout
    assert "1 node with nvidia-l4" in done.stdout
    assert not [each for each in server.requests if each.startswith("POST") and "accessreview" not in each]


@needs_kubectl
def test_failed_cluster_checks_are_reported(kube: tuple[Kube, dict[str, str]], tmp_path: Path) -> None:
    server, environment = kube
    server.denied |= {"create jobs", "get pods/log"}
    server.objects.clear()
    done = doctor("gke", **environment)
    error_line(done, 2)
    assert state_of(done.stdout, "serviceaccount trainer") == "wrong"
    assert state_of(done.stdout, "permissions") == "wrong"
    assert "you cannot create jobs.batch, get pods/log" in done.stdout
    assert state_of(done.stdout, "accelerator") == "unknown"
    assert "no node has nvidia-l4 now" in done.stdout
    done = doctor("gke", "--namespace", "nowhere", **environment)
    assert state_of(done.stdout, "namespace nowhere") == "wrong"
    assert "kubectl apply -f k8s/namespace.yaml" in done.stdout
    (tmp_path / "empty").write_text("")
    done = doctor("gke", **environment | {"KUBECONFIG": str(tmp_path / "empty")})
    assert "get-credentials CLUSTER" in done.stdout
    done = doctor("gke", **environment | {"PATH": str(tmp_path)})
    assert "kubectl is not installed" in done.stdout


EDIT_LACKS = {"list customresourcedefinitions", "list nodes"}
"""Permissions that doctor uses and the role edit, bound in a namespace, does not include."""


@needs_kubectl
def test_role_edit_can_check_permissions_and_unknown_checks_are_named(
    kube: tuple[Kube, dict[str, str]],
) -> None:
    server, environment = kube
    server.denied = set(EDIT_LACKS)
    done = doctor("gke", "--accelerator", "nvidia-l4:1", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert state_of(done.stdout, "permissions") == "ok"
    assert "unknown    accelerator: not checked: this requires the permission list nodes" in done.stdout
    assert "ready" not in done.stdout
    assert "not checked: accelerator, bucket, image" in done.stdout.splitlines()[-1]
    server.denied |= {"create selfsubjectaccessreviews", "get serviceaccounts", "get localqueues"}
    server.absent.clear()
    done = doctor("gke", "--accelerator", "cpu", "--queue", "team", **environment)
    assert done.returncode == 0, done.stderr
    for name in ("serviceaccount trainer", "permissions", "localqueue team"):
        assert state_of(done.stdout, name) == "unknown"
    assert (
        "localqueue team: not checked: this requires the permission get localqueues.kueue.x-k8s.io"
        in done.stdout
    )
    assert "ready" not in done.stdout


@needs_kubectl
def test_other_checks_run_without_permission_to_read_the_namespace(
    kube: tuple[Kube, dict[str, str]],
) -> None:
    server, environment = kube
    server.denied |= {"get namespaces", "create cronjobs"}
    server.absent.clear()
    done = doctor("gke", "--accelerator", "cpu", "--queue", "team", **environment)
    error_line(done, 2)
    assert (
        "unknown    namespace trainer: not checked: this requires the permission get namespaces"
        in done.stdout
    )
    assert state_of(done.stdout, "serviceaccount trainer") == "ok"
    assert state_of(done.stdout, "localqueue team") == "wrong"
    assert "you cannot create cronjobs.batch" in done.stdout
    assert "wrong      cluster" not in done.stdout
