"""Malformed responses of services end with exit code 75, and bugs of this program with 1 and a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.kube_cluster import Cluster
from helpers.kube_pods import pod
from helpers.serving import JsonHandler, serving
from helpers.trainer_process import error_line
from helpers.vertex_server import PROJECT, REGION

SUBMIT = [
    "--recipe", "demo", "--run-name", "pets", "--image", "r/t:gpu", "--output", "gs://bucket/runs", "--yes",
]  # fmt: skip
LABELS = {"app.kubernetes.io/managed-by": "trainer"}


def follow_up_commands(platform: str) -> list[list[str]]:
    return [[name, platform, "pets"] for name in ("status", "logs", "cancel")] + [["list", platform]]


def trainer(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line without network access outside this machine."""
    return subprocess.run(
        [sys.executable, "-m", "trainer.cli", *words],
        env={**os.environ, "NO_GCE_CHECK": "true", "DOCKER_HOST": "unix:///nowhere", **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@contextmanager
def json_server(answer: dict[str, Any]) -> Iterator[str]:
    """Run a server that responds to each request with the value of the first key that the path contains."""

    class Handler(JsonHandler, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.body()
            self.answer(200, next((value for key, value in answer.items() if key in self.path), {}))

        do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"127.0.0.1:{server.server_address[1]}"


MALFORMED_JOBS = {
    "status.ready": {"status": {"ready": "many"}},
    "status.startTime": {"status": {"startTime": "never"}},
    "status.conditions.0": {"status": {"conditions": [1]}},
    "status.conditions.0.type": {"status": {"conditions": [{"status": "True"}]}},
    "spec.parallelism": {"spec": {"parallelism": None}},
    "spec.template": {"spec": {"template": "x"}},
    "metadata.labels.a": {"metadata": {"labels": LABELS | {"a": 1}}},
}


@pytest.mark.parametrize("path", MALFORMED_JOBS)
def test_malformed_job_of_a_cluster_is_a_temporary_failure(cluster: Cluster, path: str) -> None:
    parts = MALFORMED_JOBS[path]
    metadata = {"name": "pets", "labels": LABELS} | parts.get("metadata", {})
    cluster.kube.put("jobs", "trainer", {"spec": {}} | parts | {"metadata": metadata})
    for words in follow_up_commands("gke"):
        done = cluster.quick(*words)
        assert done.returncode == 75, (words, done.stdout, done.stderr)
        assert "The response of the cluster cannot be read." in done.stderr
        assert path in done.stderr


def test_malformed_index_of_a_pod_is_a_temporary_failure(cluster: Cluster) -> None:
    cluster.kube.put("jobs", "trainer", {"metadata": {"name": "pets", "labels": LABELS}, "spec": {}})
    malformed = pod("pets-0", 0, {})
    malformed["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": "first"}
    cluster.kube.put("pods", "trainer", malformed)
    done = cluster.quick("status", "gke", "pets")
    assert (done.returncode, "metadata.annotations" in done.stderr) == (75, True), done.stderr


OUTPUTS = ["hi", "[]", '{"items": {"a": 1}}', '{"metadata": null}', "\\377", "[" * 9999]


@pytest.mark.parametrize("output", OUTPUTS)
def test_malformed_output_of_kubectl_is_a_temporary_failure(
    cluster: Cluster, tmp_path: Path, output: str
) -> None:
    (programs := tmp_path / "programs").mkdir()
    (programs / "kubectl").write_text(f"#!/bin/sh\nprintf '{output}'\n")
    (programs / "kubectl").chmod(0o755)
    cluster.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    for words in (*follow_up_commands("gke"), ["submit", "gke", *SUBMIT]):
        done = cluster.quick(*words)
        assert (done.returncode, "cannot be read" in done.stderr) == (75, True), (words, done.stderr)
    done = cluster.quick("doctor", "gke")
    assert (done.returncode, "Not ready for gke" in done.stderr) == (2, True), done.stderr
    assert "wrong      kubectl: The response of kubectl cannot be read" in done.stdout


@pytest.mark.parametrize(
    "response",
    [
        [1],
        {"customJobs": [1]},
        {"customJobs": {"a": 1}},
        {"customJobs": [{"name": "a", "displayName": "pets", "startTime": "never"}]},
        {"customJobs": [{"name": "a", "displayName": "pets", "error": None}]},
        {"customJobs": [{"name": "a", "displayName": "pets", "jobSpec": {"workerPoolSpecs": 1}}]},
        {"customJobs": [{"displayName": "pets"}]},
    ],
)
def test_malformed_response_of_vertex_ai_is_a_temporary_failure(response: Any) -> None:
    with json_server({"customJobs": response}) as address:
        project = ["--project", PROJECT, "--region", REGION, "--endpoint", f"http://{address}"]
        commands = [["status", "vertex", "pets"]]
        if response == [1]:
            commands = [*follow_up_commands("vertex"), ["submit", "vertex", *SUBMIT]]
        for words in commands:
            assert "The response of Google Cloud cannot be read" in error_line(trainer(*words, *project), 75)


def test_malformed_response_of_a_created_job_is_a_temporary_failure() -> None:
    with json_server({"customJobs?": {}, "customJobs": {"name": 1}}) as address:
        project = ["--project", PROJECT, "--region", REGION, "--endpoint", f"http://{address}"]
        assert "Received: name: " in error_line(trainer("submit", "vertex", *SUBMIT, *project), 75)


CONTAINER = {
    "Id": "made",
    "State": {"Status": "running", "ExitCode": 0, "StartedAt": "2026-11-27T11:00:00Z", "FinishedAt": ""},
    "Config": {"Labels": {"trainer.run": "pets"}, "Tty": False},
}


@pytest.mark.parametrize(
    "container",
    [
        [1],
        {"Id": "made"},
        CONTAINER | {"State": {"Status": "running"}},
        CONTAINER | {"State": CONTAINER["State"] | {"ExitCode": "none"}},
        CONTAINER | {"Config": None},
    ],
)
def test_malformed_response_of_a_docker_engine_is_a_temporary_failure(container: Any) -> None:
    answers = {
        "/version": {"ApiVersion": "1.40"},
        "/containers/json": [{"Names": []}],
        "/containers/": container,
    }
    commands = [["status", "docker", "pets"]]
    if container == [1]:
        commands = [*follow_up_commands("docker"), ["submit", "docker", *SUBMIT, "--accelerator", "cpu"]]
    with json_server(answers) as address:
        for words in commands:
            done = trainer(*words, DOCKER_HOST=f"tcp://{address}")
            assert "The response of the Docker engine cannot be read" in error_line(done, 75), words


def test_doctor_reports_a_malformed_response_as_a_failed_check(tmp_path: Path) -> None:
    with json_server({"/version": {"ApiVersion": "1.40"}}) as address:
        done = trainer("doctor", "docker", "--output", str(tmp_path), DOCKER_HOST=f"tcp://{address}")
    assert "Not ready for docker" in error_line(done, 2)
    assert "wrong      engine: The response of the Docker engine cannot be read" in done.stdout


BUGS = ["{}['of the test']", "None.of_the_test", "len(1)"]


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_of_this_program_is_not_a_temporary_failure(cluster: Cluster, bug: str) -> None:
    cluster.kube.put("jobs", "trainer", {"metadata": {"name": "pets", "labels": LABELS}, "spec": {}})
    code = f"""
import sys
from trainer.cli.app import main
from trainer.launch.cluster_jobs import ClusterJobs
from trainer.launch.kubectl import Kubectl
from trainer.launch.state import State
def fail(*arguments, **options):
    {bug}
State.text = ClusterJobs.cancel = Kubectl.logs = Kubectl.create = Kubectl.version = fail
main(sys.argv[1:])
"""
    pods = pod("pets-0", 0, {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]})
    cluster.kube.put("pods", "trainer", pods)
    commands = [["status", "gke", "pets"]]
    if bug == BUGS[0]:
        submit = ["submit", "gke", *SUBMIT, "--run-name", "cats"]
        commands = [*follow_up_commands("gke"), submit, ["doctor", "gke"]]
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=cluster.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, "Traceback" in done.stderr) == (1, True), (words, done.stdout, done.stderr)
        assert "cannot be read" not in done.stderr
