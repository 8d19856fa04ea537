"""`trainer submit gke` and its follow-up commands, with the real kubectl and an in-memory server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.bucket_server import BUCKET, bucket_server
from helpers.kube_cluster import Cluster
from helpers.kube_pods import BEGAN, ended, pod, running
from helpers.kube_server import kube_server

from trainer.storage import open_store

SUBMIT = ["submit", "gke", "--recipe", "demo", "--run-name", "pets", "--image", "registry/trainer:gpu"]
OUTPUT = ["--output", "gs://bucket/runs"]

CREATED = ("services", "secrets", "networkpolicies", "jobs")


def test_submit_prints_plan_and_creates_objects_of_dry_run(cluster: Cluster) -> None:
    dry = cluster.trainer(*SUBMIT, *OUTPUT, "--workers", "2", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not cluster.kube.requests  # no request was sent
    done = cluster.trainer(*SUBMIT, *OUTPUT, "--workers", "2", answer="y\n")
    assert done.returncode == 0, done.stderr
    for words in ("plan       job pets, 2 workers, nvidia-l4:1 each", "where      here, namespace trainer",
                  "output     gs://bucket/runs/pets", "cost       about", "created    job/pets",
                  "follow     trainer logs gke pets -f"):  # fmt: skip
        assert words in done.stdout
    import yaml

    expected = list(yaml.safe_load_all(dry.stdout))
    created = [cluster.kube.objects["trainer", kind, "pets"] for kind in CREATED]
    for value in created[:-1]:
        (owner,) = value["metadata"].pop("ownerReferences")  # deleted with the job
        assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": "pets", "uid": "uid-pets"}
    secret = created.pop(CREATED.index("secrets"))  # not printed by the dry run
    assert re.fullmatch("[0-9a-f]{64}", secret["stringData"]["token"])
    assert "kubectl create secret generic pets --namespace trainer --from-literal=token=" in dry.stdout
    for value in created:
        value["metadata"].pop("uid")
        value["metadata"].pop("creationTimestamp")
    assert created == expected


def test_submit_sends_nothing_without_confirmation(cluster: Cluster) -> None:
    for answer in ("n\n", "\n", ""):
        assert "The job was not submitted" in cluster.refused(*SUBMIT, *OUTPUT, answer=answer)
    assert not [value for value in cluster.kube.requests if value.startswith("POST")]


@pytest.mark.parametrize(
    ("kind", "refusal", "words"),
    [
        ("jobs", ("Forbidden", 'jobs.batch is forbidden: User "me" cannot create resource'), "forbidden"),
        ("jobs", ("Invalid", "late refusal"), "late refusal"),
        ("services", ("Forbidden", "services is forbidden"), "forbidden"),
        ("services", ("Invalid", "late refusal"), "late refusal"),
        ("secrets", ("Forbidden", "secrets is forbidden"), "forbidden"),
        ("networkpolicies", ("Invalid", "late refusal"), "late refusal"),
    ],
)
def test_rejected_submit_leaves_no_objects(
    cluster: Cluster, kind: str, refusal: tuple[str, str], words: str
) -> None:
    cluster.kube.refused[kind] = refusal
    assert words in cluster.refused(*SUBMIT, *OUTPUT, "--workers", "2", "--yes")
    assert not cluster.kube.objects
    # The job already exists when its service is rejected.
    removed = any(value.startswith("DELETE") and "/jobs/pets" in value for value in cluster.kube.requests)
    assert removed == (kind != "jobs" and "late" in refusal[1])


def test_missing_namespace_context_or_kubectl_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    assert '"nowhere" not found' in cluster.refused(*SUBMIT, *OUTPUT, "--namespace", "nowhere", "--yes")
    assert "configuration does not contain this cluster" in cluster.refused(
        *SUBMIT, *OUTPUT, "--context", "other", "--yes"
    )
    (tmp_path / "empty").write_text("")
    cluster.environment["KUBECONFIG"] = str(tmp_path / "empty")
    assert "configuration does not contain this cluster" in cluster.refused(*SUBMIT, *OUTPUT, "--yes")
    cluster.environment["PATH"] = str(tmp_path)
    assert "kubectl is not installed" in cluster.refused(*SUBMIT, *OUTPUT, "--yes")


def test_unreachable_cluster_is_a_temporary_failure(cluster: Cluster, tmp_path: Path) -> None:
    with kube_server(tmp_path) as (_, config):
        text = config.read_text()
    config.write_text(text)  # of a server that has stopped
    assert "cannot be reached" in cluster.refused(*SUBMIT, *OUTPUT, "--yes", code=75)


def test_submit_does_not_change_existing_job_of_same_name(cluster: Cluster) -> None:
    assert cluster.trainer(*SUBMIT, *OUTPUT, "--yes").returncode == 0
    before = dict(cluster.kube.objects)
    assert "already exists" in cluster.refused(*SUBMIT, *OUTPUT, "--yes")
    assert cluster.kube.objects == before


def test_invalid_options_are_rejected_before_any_request(cluster: Cluster) -> None:
    for options in (
        [*OUTPUT, "--accelerator", "nvidia-l5"], [*OUTPUT, "--schedule", "daily"], ["--output", "runs"],
        [*OUTPUT, "--data", "photos"], [*OUTPUT, "--prices", "nowhere.yaml"], [*OUTPUT, "--run-name", "A_B"],
        [*OUTPUT, "--set", "train.epoks=3"],
    ):  # fmt: skip
        cluster.refused(*SUBMIT, *options, "--yes")
    assert not cluster.kube.requests


def test_status_logs_and_cancel_accept_name_of_jobset(cluster: Cluster) -> None:
    with bucket_server() as bucket:
        cluster.environment["STORAGE_EMULATOR_HOST"] = bucket.address
        follow_a_jobset(cluster, f"gs://{BUCKET}/runs")


def test_jobset_on_cluster_without_jobsets_is_rejected(cluster: Cluster) -> None:
    cluster.kube.absent.add("jobset.x-k8s.io")
    assert "does not have JobSets" in cluster.refused(*SUBMIT, *OUTPUT, "--jobset", "--yes")
    assert "There is no job of this name" in cluster.refused("cancel", "gke", "pets")


def follow_a_jobset(cluster: Cluster, output: str) -> None:
    words = [*SUBMIT, "--output", output, "--workers", "2", "--jobset", "--yes"]
    done = cluster.trainer(*words)
    assert done.returncode == 0, done.stderr
    assert "plan       JobSet pets, 2 workers" in done.stdout
    assert "created    jobset/pets" in done.stdout
    made = cluster.kube.objects["trainer", "jobsets", "pets"]
    assert not cluster.kube.names("services")
    labels = {"jobset.sigs.k8s.io/jobset-name": "pets"}
    template = made["spec"]["replicatedJobs"][0]["template"]
    output_text = cluster.trainer("status", "gke", "pets").stdout
    assert output_text.startswith("pets  waiting, its job has not been created yet")
    assert cluster.quick("list", "gke").stdout.startswith("pets  waiting")
    owner = {"apiVersion": made["apiVersion"], "kind": "JobSet", "name": "pets", "uid": "uid-pets"}
    metadata = {
        "name": "pets-worker-0", "labels": labels | template["metadata"]["labels"],
        "ownerReferences": [owner],
    }  # fmt: skip
    job = {"kind": "Job", "apiVersion": "batch/v1", "metadata": metadata, "spec": template["spec"]}
    cluster.kube.put("jobs", "trainer", job | {"status": {"ready": 1, "startTime": BEGAN}})
    first = pod("pets-worker-0-1-x", 1, ended(75))
    first["metadata"]["labels"] |= {"batch.kubernetes.io/job-name": "pets-worker-0"}
    cluster.kube.put("pods", "trainer", first)
    cluster.kube.logs["pets-worker-0-1-x"] = "of the second\n"
    output_text = cluster.trainer("status", "gke", "pets").stdout
    assert output_text.startswith("pets  running, 1 of 2 workers ready")
    assert cluster.quick("list", "gke").stdout.startswith("pets  running")
    assert cluster.quick("logs", "gke", "pets", "--worker", "1").stdout == "of the second\n"
    assert "ended      pets (jobset)" in cluster.quick("cancel", "gke", "pets").stdout
    assert not cluster.kube.names("jobsets")


def test_job_is_followed_from_submit_to_cancel(cluster: Cluster, tmp_path: Path) -> None:
    with bucket_server() as bucket:
        cluster.environment["STORAGE_EMULATOR_HOST"] = bucket.address
        output = f"gs://{BUCKET}/runs"
        assert cluster.trainer(*SUBMIT, "--output", output, "--yes").returncode == 0
        job = cluster.kube.objects["trainer", "jobs", "pets"]
        output_text = cluster.trainer("status", "gke", "pets").stdout
        assert output_text.startswith("pets  waiting, not started yet")
        assert "no epoch yet" in output_text
        assert "no pod with a log: pets is waiting" in cluster.quick("logs", "gke", "pets").stderr
        job["status"] = {"ready": 1, "startTime": "2026-11-27T11:00:00Z"}
        cluster.kube.put("pods", "trainer", pod("pets-0", 0, running()))
        cluster.kube.logs["pets-0"] = "trainer 0.1.0\n"
        os.environ["STORAGE_EMULATOR_HOST"] = bucket.address
        try:
            row = {"epoch": 3, "train/accuracy": 0.9, "validation/accuracy": 0.8125}
            open_store(f"{output}/pets").write("history.jsonl", json.dumps(row).encode() + b"\n")
        finally:
            del os.environ["STORAGE_EMULATOR_HOST"]
        output_text = cluster.trainer("status", "gke", "pets").stdout
        assert output_text.startswith("pets  running, for ")
        assert "epoch 3 of 15, train/accuracy 0.900, validation/accuracy 0.812" in output_text
    cluster.environment.pop("STORAGE_EMULATOR_HOST")
    assert cluster.quick("logs", "gke", "pets").stdout == "trainer 0.1.0\n"
    assert cluster.quick("list", "gke").stdout.startswith("pets  running")
    done = cluster.quick("cancel", "gke", "pets")
    assert done.returncode == 0, done.stderr
    assert "ended      pets (job)" in done.stdout
    assert not cluster.kube.names("jobs")
    assert "There is no job of this name" in cluster.refused("cancel", "gke", "pets")
    assert "There is no job of this name" in cluster.refused("status", "gke", "pets")
    assert cluster.quick("list", "gke").stdout == "no jobs\n"


def test_cancel_ignores_foreign_objects(cluster: Cluster) -> None:
    for kind, name in (("services", "Service"), ("jobs", "Job")):
        version = "v1" if kind == "services" else "batch/v1"
        cluster.kube.put(kind, "trainer", {"kind": name, "apiVersion": version, "metadata": {"name": "db"}})
    assert "There is no job of this name" in cluster.refused("cancel", "gke", "db")
    assert cluster.kube.names("services") == cluster.kube.names("jobs") == ["db"]


def test_cancel_works_without_permission_for_other_kinds(cluster: Cluster) -> None:
    assert cluster.trainer(*SUBMIT, *OUTPUT, "--yes").returncode == 0
    cluster.kube.denied |= {"get cronjobs", "get jobsets"}
    assert "ended      pets (job)" in cluster.quick("cancel", "gke", "pets").stdout
    assert "forbidden" in cluster.refused("cancel", "gke", "pets")


@pytest.mark.parametrize("kind", ["jobs", "services"])
def test_signal_during_submit_removes_created_objects(cluster: Cluster, kind: str) -> None:
    cluster.kube.slow = kind
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *SUBMIT, *OUTPUT, "--workers", "2", "--yes"],
        env=cluster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert cluster.kube.is_slow.wait(30)
    process.send_signal(signal.SIGTERM)
    _, output_text = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in output_text) == (143, False), output_text
    cluster.kube.go_on.set()
    until = time.monotonic() + 10
    while cluster.kube.names("jobs") and time.monotonic() < until:
        time.sleep(0.1)
    assert not cluster.kube.names("jobs")


def test_status_shows_warning_event_of_job_without_pods(cluster: Cluster) -> None:
    assert cluster.trainer(*SUBMIT, *OUTPUT, "--yes").returncode == 0
    quota = "pods is forbidden: exceeded quota: gpus\x1b[2J"
    for number, (name, kind, message) in enumerate(
        (("pets", "Warning", quota), ("pets", "Normal", "fine"), ("cats", "Warning", "of another"))
    ):
        event = {
            "kind": "Event", "apiVersion": "v1", "metadata": {"name": f"e{number}"}, "type": kind,
            "reason": "FailedCreate", "message": message,
            "involvedObject": {"name": name, "uid": f"uid-{name}"},
            "lastTimestamp": f"2026-11-27T11:00:0{number}Z",
        }  # fmt: skip
        cluster.kube.put("events", "trainer", event)
    cluster.environment["STORAGE_EMULATOR_HOST"] = "http://127.0.0.1:9"
    lines = cluster.trainer("status", "gke", "pets").stdout.splitlines()
    assert lines[0].startswith("pets  waiting")
    assert lines[1] == "  FailedCreate: pods is forbidden: exceeded quota: gpus\\x1b[2J"
    assert lines[2] == "  run: its storage does not respond"


def test_status_of_cronjob_shows_schedule_and_newest_job(cluster: Cluster) -> None:
    with bucket_server() as bucket:
        cluster.environment["STORAGE_EMULATOR_HOST"] = bucket.address
        output = f"gs://{BUCKET}/runs"
        words = [*SUBMIT, "--output", output, "--schedule", "0 3 * * 1", "--yes"]
        assert cluster.trainer(*words).returncode == 0
        assert cluster.trainer("status", "gke", "pets").stdout == "pets  at 0 3 * * 1 (Etc/UTC), no job yet\n"
        cron = cluster.kube.objects["trainer", "cronjobs", "pets"]
        template = cron["spec"]["jobTemplate"]
        owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "pets", "uid": cron["metadata"]["uid"]}
        for name, hour in (("pets-1", 9), ("pets-2", 10)):
            metadata = {
                "name": name, "labels": template["metadata"]["labels"], "ownerReferences": [owner],
                "creationTimestamp": f"2026-11-27T{hour:02}:00:00Z",
            }  # fmt: skip
            job = {"kind": "Job", "apiVersion": "batch/v1", "metadata": metadata, "spec": template["spec"]}
            cluster.kube.put("jobs", "trainer", job | {"status": {"ready": 1, "startTime": BEGAN}})
        output_text = cluster.trainer("status", "gke", "pets").stdout.splitlines()
        assert output_text[0] == "pets  at 0 3 * * 1 (Etc/UTC)"
        assert output_text[1].startswith("pets-2  running")
        assert f"run: {output}/pets-2" in output_text[2]


def test_malformed_job_names_are_rejected(cluster: Cluster) -> None:
    for name in ("-A", "--all", "a b", ""):
        cluster.refused("status", "gke", "--", name)


def test_dry_run_prints_plan_and_cost_before_the_manifest(cluster: Cluster) -> None:
    """The plan is on standard error, so that the manifest can be piped to kubectl."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer.cli", *SUBMIT, *OUTPUT, "--dry-run"],
        env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith("plan       job pets, nvidia-l4:1")
    assert lines[1] == "where      namespace trainer"
    assert lines[4].startswith("cost       about ")
    assert lines[5] == "apiVersion: batch/v1"
