"""`trainer submit`, `status`, `logs`, `list` and `cancel vertex`, against a fake Vertex AI."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from helpers.bucket_server import BUCKET, bucket_server
from helpers.serving import JsonHandler, serving
from helpers.trainer_process import error_line
from helpers.vertex_server import CUSTOM_JOB, NUMBER, PROJECT, REGION, Vertex, read, vertex_server

from trainer.errors import UsageError
from trainer.launch.accelerators import find_accelerator
from trainer.launch.plan import JobPlan
from trainer.launch.vertex import Project, custom_job
from trainer.spec import load_spec, parse_spec

SUBMIT = [
    "submit", "vertex", "--recipe", "demo", "--run-name", "pets", "--image", "registry/trainer:gpu",
    "--output", "gs://bucket/runs",
]  # fmt: skip


class Cloud:
    """Fake Vertex AI server, and the command line with this server as its endpoint."""

    def __init__(self, vertex: Vertex) -> None:
        self.vertex = vertex
        self.where = ["--project", PROJECT, "--region", REGION, "--endpoint", vertex.address]

    def trainer(
        self, *words: str, where: list[str] | None = None, answer: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trainer.cli", *words, *(self.where if where is None else where)],
            env={**os.environ, "DOCKER_HOST": "unix:///nowhere"},
            input=answer, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def output_of(self, *words: str) -> str:
        done = self.trainer(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *words: str, code: int = 2, where: list[str] | None = None) -> str:
        return error_line(self.trainer(*words, where=where), code)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with vertex_server() as vertex:
        yield Cloud(vertex)


def _pop_tokens(job: dict[str, Any]) -> list[str]:
    """Remove the secret of the process group from all pools of a job, and return its values."""
    tokens = []
    for pool in job["jobSpec"]["workerPoolSpecs"]:
        variables = {each["name"]: each["value"] for each in pool["containerSpec"]["env"]}
        tokens.append(variables.pop("TRAINER_GROUP_SECRET"))
        pool["containerSpec"]["env"] = [{"name": name, "value": value} for name, value in variables.items()]
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in tokens)
    return tokens


def test_submit_creates_job_of_dry_run(cloud: Cloud) -> None:
    dry = cloud.output_of(*SUBMIT, "--workers", "3", "--spot", "--dry-run")
    assert not cloud.vertex.requests
    output_text = cloud.trainer(*SUBMIT, "--workers", "3", "--spot", answer="y\n").stdout
    assert "plan       job pets, 3 workers, nvidia-l4:1 each (g2-standard-8, spot)" in output_text
    assert f"where      project {PROJECT}, {REGION}" in output_text
    assert f"created    projects/123/locations/{REGION}/customJobs/1000" in output_text
    sent = json.loads(dry)
    # Each submission has a token of its own, also a dry run.
    tokens = [_pop_tokens(job) for job in (sent, cloud.vertex.jobs[0])]
    assert [len(set(each)) for each in tokens] == [1, 1]
    assert tokens[0] != tokens[1]
    assert sent.items() <= cloud.vertex.jobs[0].items()
    first, rest = sent["jobSpec"]["workerPoolSpecs"]
    assert (first["replicaCount"], rest["replicaCount"]) == ("1", "2")
    assert sent["jobSpec"]["scheduling"]["strategy"] == "SPOT"
    values = {variable["name"]: variable["value"] for variable in first["containerSpec"]["env"]}
    assert values["TRAINER_RUN_NAME"] == "pets"
    assert parse_spec(values["TRAINER_SPEC"], "here").output == "gs://bucket/runs"


def test_schedule_posts_job_without_run_name(cloud: Cloud) -> None:
    words = [*SUBMIT, "--schedule", "0 3 * * 1", "--service-account", "me@acme.iam", "--yes"]
    assert "jobs/pets" in cloud.output_of(*words)
    sent = cloud.vertex.schedules["pets"]
    assert (sent["schedule"], sent["timeZone"]) == ("0 3 * * 1", "Etc/UTC")
    assert sent["httpTarget"]["oauthToken"]["serviceAccountEmail"] == "me@acme.iam"
    job = json.loads(base64.b64decode(sent["httpTarget"]["body"]))
    names = [variable["name"] for variable in job["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["env"]]
    assert names == ["TRAINER_SPEC"]  # the run's name comes from the Vertex AI job
    assert "already exists" in cloud.refused(*words)
    assert cloud.output_of("list", "vertex") == "pets  at 0 3 * * 1 (Etc/UTC)\n"
    # The jobs of a schedule have its name; cancelling the name ends both.
    made = job | {
        "name": f"projects/{NUMBER}/locations/{REGION}/customJobs/77",
        "state": "JOB_STATE_SUCCEEDED",
    }
    cloud.vertex.jobs = [made | {"createTime": "2026-11-27T11:00:00Z"}]
    assert cloud.output_of("list", "vertex").splitlines()[1].startswith("pets  finished")
    assert "ended      pets (schedule)" in cloud.output_of("cancel", "vertex", "pets")
    assert not cloud.vertex.schedules
    assert "requires a service account" in cloud.refused(*SUBMIT, "--schedule", "0 3 * * 1", "--yes")


@pytest.mark.parametrize(
    ("refused", "code", "words"),
    [
        ((403, "Permission denied"), 2, "denies access"),
        (
            (429, "Quota exceeded for custom_model_training_nvidia_l4_gpus"),
            2,
            "A quota of Google Cloud is exhausted",
        ),
        ((503, "Backend error"), 75, "Try again later"),
        ((400, "Machine type is not supported"), 2, "Machine type is not supported"),
    ],
)
def test_rejected_submit_reports_reason_and_leaves_no_job(
    cloud: Cloud, refused: tuple[int, str], code: int, words: str
) -> None:
    cloud.vertex.refused = refused
    assert words in cloud.refused(*SUBMIT, "--yes", code=code)
    assert not cloud.vertex.jobs


def test_missing_project_or_region_is_reported(cloud: Cloud) -> None:
    endpoint = ["--endpoint", cloud.vertex.address]
    elsewhere = ["--project", "other", "--region", REGION, *endpoint]
    assert "no such project" in cloud.refused(*SUBMIT, "--yes", where=elsewhere)
    assert "--project says" in cloud.refused(*SUBMIT, "--yes", where=endpoint)
    nobody = ["--project", PROJECT, "--region", REGION, "--endpoint", "http://127.0.0.1:9"]
    assert "cannot be reached" in cloud.refused(*SUBMIT, "--yes", where=nobody, code=75)
    unknown = ["--project", PROJECT, "--region", REGION, "--endpoint", "http://no-such-host.invalid"]
    assert "The host name does not exist" in cloud.refused(*SUBMIT, "--yes", where=unknown)
    assert "does not offer this accelerator" in cloud.refused(*SUBMIT, "--accelerator", "tpu-v6e", "--yes")
    assert "not both" in cloud.refused(*SUBMIT, "--spot", "--flex-start", "--yes")
    assert "There is no job of this name" in cloud.refused("status", "vertex", "cats")
    strange = ["--project", PROJECT, "--region", "x.example/?", *endpoint]
    assert "The region is invalid. Use a name such as europe-west4." in cloud.refused(
        *SUBMIT, "--yes", where=strange
    )
    strange = ["--project", "acme/../other", "--region", REGION, *endpoint]
    assert "The project ID is invalid. Use lowercase letters" in cloud.refused(
        *SUBMIT, "--yes", where=strange
    )


def test_missing_bucket_is_reported_before_anything_is_sent(cloud: Cloud) -> None:
    assert "does not exist" not in cloud.output_of(*SUBMIT, "--dry-run")
    for words in (["--output", "gs://nowhere/runs"], ["--data", "gs://nowhere/photos"]):
        output_text = cloud.refused(*SUBMIT, *words, "--yes")
        assert (
            "The bucket gs://nowhere does not exist. Create it with `gcloud storage buckets create"
            in output_text
        )
    assert not cloud.vertex.jobs
    cloud.vertex.project.lacking = {"storage.objects.create"}  # the job runs with permissions of its own
    output_text = cloud.output_of(*SUBMIT, "--yes")
    assert "note       bucket bucket: it exists, but you do not have storage.objects.create" in output_text
    assert "note       image: not checked, because no Docker engine responds" in output_text
    assert cloud.vertex.jobs


def test_name_of_active_job_is_rejected_and_of_ended_job_accepted(cloud: Cloud) -> None:
    cloud.output_of(*SUBMIT, "--yes")
    assert "A job of this name is active" in cloud.refused(*SUBMIT, "--yes")
    assert len(cloud.vertex.jobs) == 1
    cloud.vertex.jobs[0]["state"] = "JOB_STATE_FAILED"
    cloud.output_of(*SUBMIT, "--yes")  # continues the same run
    assert len(cloud.vertex.jobs) == 2
    assert "ended      pets (job)" in cloud.output_of("cancel", "vertex", "pets")
    assert "There is no active job of this name" in cloud.refused("cancel", "vertex", "cats")


def test_missing_credentials_are_reported_with_remedy(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.cli", *SUBMIT, "--project", "p", "--yes"],
        env={**os.environ, "HOME": str(tmp_path), "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere.json",
             "NO_GCE_CHECK": "true"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert (
        "no Google Cloud credentials. Create them with `gcloud auth application-default login`" in done.stderr
    )


@pytest.mark.engine
def test_job_is_followed_from_submit_to_cancel(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_server() as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.address)
        follow_to_the_end(cloud, f"gs://{BUCKET}/runs")


def follow_to_the_end(cloud: Cloud, output: str) -> None:
    cloud.output_of(*SUBMIT, "--output", output, "--yes")
    job = cloud.vertex.jobs[0]
    output_text = cloud.output_of("status", "vertex", "pets")
    assert output_text.startswith("pets  waiting, not started yet")
    assert f"run: {output}/pets, no epoch yet" in output_text
    service = {"resource": {"labels": {"task_name": "service"}}, "timestamp": "2026-11-27T10:59:00Z"}
    waits = ["Job is queued.", "Resources are insufficient in region: europe-west4.\x1b[2J"]
    cloud.vertex.entries = [service | {"insertId": text, "textPayload": text} for text in waits]
    output_text = cloud.output_of("status", "vertex", "pets")
    assert "  Resources are insufficient in region: europe-west4.\\x1b[2J\n" in output_text
    assert "queued" not in output_text
    job |= {"state": "JOB_STATE_RUNNING", "startTime": "2026-11-27T11:00:00.5Z"}
    assert cloud.output_of("list", "vertex").startswith("pets  running, for ")
    label = {"resource": {"labels": {"task_name": "workerpool0-0"}}}
    other = {"resource": {"labels": {"task_name": "workerpool1-0"}}}
    cloud.vertex.entries = [
        label | {"insertId": "a", "timestamp": "2026-11-27T11:00:01Z", "textPayload": "trainer 0.1.0"},
        label | {"insertId": "b", "timestamp": "2026-11-27T11:00:02Z", "jsonPayload": {"message": "epoch 1"}},
        other | {"insertId": "c", "timestamp": "2026-11-27T11:00:03Z", "textPayload": "of another worker"},
    ]  # fmt: skip
    assert cloud.output_of("logs", "vertex", "pets") == "trainer 0.1.0\nepoch 1\n"
    assert cloud.output_of("logs", "vertex", "pets", "--worker", "1") == "of another worker\n"

    def end() -> None:
        time.sleep(2)
        cloud.vertex.entries.append(
            label | {"insertId": "d", "timestamp": "2026-11-27T11:00:04Z", "textPayload": "the end"}
        )
        message = "The replica workerpool0-0 exited with a non-zero status of 65."
        job.update(
            {"state": "JOB_STATE_FAILED", "endTime": "2026-11-27T11:41:00Z", "error": {"message": message}}
        )

    ending = threading.Thread(target=end)
    ending.start()
    assert cloud.output_of("logs", "vertex", "pets", "-f") == "trainer 0.1.0\nepoch 1\nthe end\n"
    ending.join()
    output_text = cloud.output_of("status", "vertex", "pets")
    assert output_text.startswith("pets  failed, took 41 min")
    assert "exit code 65: the data cannot be used" in output_text
    job["state"] = "JOB_STATE_RUNNING"
    assert "ended      pets (job)" in cloud.output_of("cancel", "vertex", "pets")
    assert cloud.output_of("status", "vertex", "pets").startswith("pets  cancelling")


@pytest.mark.parametrize(
    "text",
    [
        "cpu", "nvidia-tesla-t4:2", "nvidia-l4", "nvidia-tesla-a100", "nvidia-a100-80gb",
        "nvidia-h100-80gb:8", "nvidia-h200-141gb", "nvidia-b200:8", "nvidia-rtx-pro-6000", "tpu-v5e:2x4",
    ],
)  # fmt: skip
def test_accelerators_exist_on_vertex_ai(text: str) -> None:
    spec = load_spec(None, "demo", (), {"output": "gs://bucket/runs"})
    plan = JobPlan("vertex", "pets", spec, "registry/trainer", find_accelerator(text))
    body = custom_job(plan, Project("p", "europe-west4"))
    machine = read(body, CUSTOM_JOB).job_spec.worker_pool_specs[0].machine_spec
    if plan.accelerator.kind == "gpu":
        kinds = machine.DESCRIPTOR.fields_by_name["accelerator_type"].enum_type.values_by_number
        assert kinds[machine.accelerator_type].name == plan.accelerator.vertex
        assert machine.accelerator_count == plan.accelerator.count


def test_accelerator_missing_on_vertex_ai_is_rejected() -> None:
    spec = load_spec(None, "demo", (), {"output": "gs://bucket/runs"})
    plan = JobPlan("vertex", "pets", spec, "registry/trainer", find_accelerator("tpu-v6e"))
    with pytest.raises(UsageError, match="does not offer"):
        custom_job(plan, Project("p", "europe-west4"))


@pytest.mark.parametrize(
    "values",
    [{"service_account": "nobody"}, {"service_account": "a b@c"}, {"endpoint": "ftp://a"}, {"endpoint": "a"}],
)
def test_invalid_service_account_or_endpoint_is_rejected(values: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(values.values()))):
        Project("p", "europe-west4", **values)


ODD = (
    b"<html>Log in</html>", b"", b"[1]", b'{"customJobs": [1]}', b'{"customJobs": {"a": 1}}',
    b'{"customJobs": [{"displayName": "pets", "jobSpec": {}, "startTime": "never"}]}',
    b'{"customJobs": [{"displayName": "pets", "error": null, "jobSpec": null}]}',
)  # fmt: skip


@pytest.mark.parametrize("body", ODD)
def test_malformed_responses_end_without_traceback(body: bytes) -> None:
    class Odd(JsonHandler, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.body()
            self.send(200, body, "application/json")

        do_POST = do_DELETE = do_GET  # noqa: N815

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Odd)) as server:
        where = ["--project", PROJECT, "--region", REGION, "--endpoint"]
        where.append(f"http://127.0.0.1:{server.server_address[1]}")
        cloud = Cloud(Vertex())
        for words in (["status", "vertex", "pets"], ["list", "vertex"], [*SUBMIT, "--yes"]):
            done = cloud.trainer(*words, where=where)
            assert done.returncode in (0, 2, 75), done.stderr
            assert "Traceback" not in done.stderr
            assert done.returncode == 0 or "Received: " in done.stderr
