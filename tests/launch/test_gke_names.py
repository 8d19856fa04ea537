"""Names of jobs, schedules, namespaces and queues, including names with words of error messages."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.kube_cluster import Cluster

SUBMIT = ["submit", "gke", "--recipe", "demo", "--image", "r/t:gpu", "--output", "gs://bucket/runs", "--yes"]
LABELS = {"app.kubernetes.io/managed-by": "trainer"}
WORDS = ("timeout", "forbidden", "not-found", "connection-refused", "eof", "already-exists")
SCHEDULE = {"schedule": "0 3 * * 1", "timeZone": "Etc/UTC"}


def put(cluster: Cluster, kind: str, name: str, **more: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [{"name": "trainer"}]}}
    value = {"metadata": {"name": name, "labels": dict(LABELS)}, "spec": {"template": template}}
    return cluster.kube.put(kind, "trainer", value | more)


@pytest.mark.parametrize("name", WORDS)
def test_job_named_like_an_error_is_shown_and_cancelled(cluster: Cluster, name: str) -> None:
    put(cluster, "jobs", name)
    assert cluster.quick("status", "gke", name).stdout == f"{name}  waiting, not started yet\n"
    done = cluster.quick("cancel", "gke", name)
    assert (done.returncode, done.stdout) == (0, f"ended      {name} (job)\n"), done.stderr
    assert not cluster.kube.names("jobs")
    for command in ("logs", "cancel"):
        done = cluster.quick(command, "gke", name)
        assert (done.returncode, "There is no job of this name" in done.stderr) == (2, True), done.stderr


def test_job_named_like_an_error_is_submitted_once(cluster: Cluster) -> None:
    words = [*SUBMIT, "--run-name", "timeout"]
    assert cluster.trainer(*words).returncode == 0
    assert "A Job named timeout already exists." in cluster.refused(*words)
    assert cluster.quick("list", "gke").stdout == "timeout  waiting, not started yet\n"


def test_schedule_and_job_cannot_share_a_name(cluster: Cluster) -> None:
    put(cluster, "cronjobs", "pets", spec=SCHEDULE)
    put(cluster, "jobs", "cats")
    assert "A schedule of this name already exists" in cluster.refused(*SUBMIT, "--run-name", "pets")
    weekly = ["--schedule", "0 3 * * 1"]
    assert "A job of this name already exists" in cluster.refused(*SUBMIT, "--run-name", "cats", *weekly)
    cluster.kube.denied.add("get cronjobs")  # without this permission jobs can be submitted, with a note
    done = cluster.trainer(*SUBMIT, "--run-name", "dogs")
    assert done.returncode == 0, done.stderr
    assert "note       name dogs: not checked: this requires the permission get cronjobs.batch" in done.stdout


def test_cancel_requires_choice_between_schedule_and_job_of_same_name(
    cluster: Cluster,
) -> None:
    cron = put(cluster, "cronjobs", "pets", spec=SCHEDULE)
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "pets", "uid": "uid-cron"}
    cron["metadata"]["uid"] = "uid-cron"
    put(cluster, "jobs", "pets")
    put(cluster, "services", "pets")["metadata"]["ownerReferences"] = [owner]
    output = cluster.quick("status", "gke", "pets").stdout
    assert output == "pets  at 0 3 * * 1 (Etc/UTC)\npets  waiting, not started yet\n"
    done = cluster.quick("cancel", "gke", "pets")
    assert done.returncode == 2
    assert "`trainer cancel gke pets --schedule`" in done.stderr
    assert len(cluster.kube.objects) == 3
    assert cluster.quick("cancel", "gke", "pets", "--job").stdout == "ended      pets (job)\n"
    assert (cluster.kube.names("cronjobs"), cluster.kube.names("services")) == (["pets"], ["pets"])
    assert cluster.quick("cancel", "gke", "pets", "--job").returncode == 2
    assert cluster.quick("cancel", "gke", "pets", "--schedule").stdout.startswith("ended      pets (cronjob")
    assert not cluster.kube.objects
    assert "--job does not apply to docker" in cluster.quick("cancel", "docker", "pets", "--job").stderr


def test_foreign_service_of_same_name_is_reported_as_service(cluster: Cluster) -> None:
    put(cluster, "services", "pets")["metadata"]["labels"] = {}
    output = cluster.refused(*SUBMIT, "--run-name", "pets", "--workers", "2")
    assert "already has a Service named pets" in output
    assert "status" not in output


@pytest.mark.parametrize("name", ["a.b", "a..b", "-a", "a-", "A", "a" * 64, ""])
def test_namespace_must_be_a_dns_label(cluster: Cluster, name: str) -> None:
    for command in (["list", "gke"], [*SUBMIT, "--dry-run"], ["doctor", "gke"]):
        done = cluster.quick(*command, "--namespace", name)
        assert (done.returncode, "The value of --namespace is invalid" in done.stderr) == (2, True), (
            done.stderr
        )
    assert not cluster.kube.requests


@pytest.mark.parametrize("name", ["a..b", "a.-b", "a-.b", ".a", "a.", "a_b"])
def test_service_account_and_queue_must_be_dns_subdomains(cluster: Cluster, name: str) -> None:
    for option in ("--service-account", "--queue"):
        for command in ([*SUBMIT, "--dry-run"], ["doctor", "gke"]):
            done = cluster.quick(*command, option, name)
            assert (done.returncode, f"The value of {option} is invalid" in done.stderr) == (2, True), (
                done.stderr
            )
    dotted = ["--service-account", "a.b", "--queue", "a.b"]
    assert cluster.quick(*SUBMIT, "--dry-run", *dotted).returncode == 0


def test_missing_namespace_is_reported_with_command_that_creates_it(cluster: Cluster) -> None:
    there = ["--namespace", "nowhere"]
    for words in (
        ["list", "gke"],
        ["status", "gke", "pets"],
        ["cancel", "gke", "pets"],
        ["logs", "gke", "pets"],
    ):
        done = cluster.quick(*words, *there)
        assert done.returncode == 2
        assert "The namespace does not exist." in done.stderr
        assert "account with `kubectl apply -f k8s/namespace.yaml`" in done.stderr
    assert "kubectl apply -f k8s/namespace.yaml" in cluster.refused(*SUBMIT, *there)
    cluster.kube.denied.add("get namespaces")
    assert cluster.quick("list", "gke", *there).stdout == "no jobs\n"


def test_missing_queue_is_rejected_before_anything_is_sent(cluster: Cluster) -> None:
    words = [*SUBMIT, "--run-name", "pets", "--queue", "team"]
    assert "The cluster does not have Kueue" in cluster.refused(*words)
    cluster.kube.absent.clear()
    assert "The localqueue team does not exist." in cluster.refused(*words)
    put(cluster, "localqueues", "team")
    assert cluster.trainer(*words).returncode == 0
    assert cluster.kube.names("jobs") == ["pets"]
