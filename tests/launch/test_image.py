"""The container image, built and run with a real engine, and every exit code of the table."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from helpers.bucket_server import BUCKET, bucket_server
from helpers.copied_project import copied_project
from helpers.docker_engine import USER, end, engine_address, start, wait_for_line
from helpers.registry_server import registry_server
from helpers.trainer_process import command, error_line, refused
from helpers.vertex_server import PROJECT, REGION, vertex_server

from trainer.errors import EXIT_CODES, UsageError
from trainer.launch.accelerators import find_accelerator
from trainer.launch.checks import check_registry_image
from trainer.launch.image import find_source, push_image, tags_of
from trainer.launch.kubernetes import KubernetesCluster, objects_of
from trainer.launch.plan import JobPlan
from trainer.runs.publish import latest_run, verify
from trainer.spec import load_spec
from trainer.storage import open_store

QUICK = ["--set", "train.epochs=4"]
TRAIN = ["train", "--output", "/out", "--run-name"]
SHORT = ["--set", "train.epochs=2"]
ALONE = {"TRAINER_WORKERS": "2", "TRAINER_SERVICE": "peers", "JOB_COMPLETION_INDEX": "0"}
# By exit code: arguments, container options, and expected output (empty where the process gets SIGKILL).
CASES: dict[int, tuple[Sequence[str], dict[str, Any], str]] = {
    0: ([*TRAIN, "fine", *SHORT], {}, "report"),
    1: ([*TRAIN, "broken", *SHORT], {"is_broken": True}, "of the test"),
    2: ([*TRAIN, "typo", "--set", "train.epoks=3"], {}, "Did you mean train.epochs?"),
    4: ([*TRAIN, "poor", *SHORT, "--assert-accuracy-at-least", "1"], {}, "less accurate than required"),
    65: ([*TRAIN, "nothing", "--data", "/nowhere"], {}, "Error: "),
    69: ([*TRAIN, "gpu", "--require-accelerator", "gpu"], {}, "Error: "),
    70: ([*TRAIN, "wild", "--set", "optimizer.learning_rate=1e30", *SHORT], {}, "Error: "),
    75: ([*TRAIN, "alone", "--set", "train.meet_seconds=2"],
         {"environment": ALONE, "hostname": "pets-0"}, "Error: "),
    137: ([*TRAIN, "large"], {"mem_limit": "200m"}, ""),
    143: ([*TRAIN, "stopped", "--set", "train.epochs=500"], {"is_stopped": True}, "the checkpoint is safe"),
}  # fmt: skip
BROKEN = 'raise RuntimeError("of the test")\n'


def test_image_tags_name_content_and_clean_commit(tmp_path: Path) -> None:
    project = copied_project(tmp_path / "project")
    source = find_source(project / "trainer" / "cli", "cpu", "base")
    assert source.root == project
    assert tags_of(source, "place:5000/trainer", "cpu") == [
        f"place:5000/trainer:cpu-{source.digest}",
        f"place:5000/trainer:cpu-{source.commit}",
        "place:5000/trainer:cpu",
    ]
    (project / "tests" / "conftest.py").write_text("")  # not part of any image
    assert find_source(project, "cpu", "base").digest == source.digest
    (project / "trainer" / "exits.py").write_text("")
    changed = find_source(project, "cpu", "base")
    assert changed.is_dirty
    digests = {source.digest, changed.digest, find_source(project, "gpu", "base").digest}
    assert len(digests | {find_source(project, "cpu", "other").digest}) == 4
    assert len(tags_of(changed, "trainer", "cpu")) == 2
    with pytest.raises(UsageError, match="Commit the changes first"):
        push_image(None, changed, ["trainer:cpu"], print)
    for name in ("Bad Name", "trainer:mine", "-x", ""):
        with pytest.raises(UsageError, match="The image name is invalid"):
            tags_of(source, name, "cpu")
    with pytest.raises(UsageError, match="Change to the folder of the project"):
        find_source(tmp_path, "cpu", "base")


def archive() -> bytes:
    """Return a tar archive of a file system with one empty file."""
    with io.BytesIO() as data:
        with tarfile.open(fileobj=data, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("nothing"))
        return data.getvalue()


@pytest.mark.engine
def test_image_contains_package_and_no_build_tools(engine: DockerClient) -> None:
    about = engine.images.get("trainer:cpu").attrs
    assert about["Config"]["User"] == f"{USER}:{USER}"
    assert about["Config"]["Entrypoint"] == ["/usr/bin/tini", "--", "/opt/package/bin/trainer"]
    labels = about["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 12
    assert about["Size"] <= 1.40e9
    container = engine.containers.run(
        "trainer:cpu", ["-c", "for name in gcc cc pip strip; do command -v $name; done; id -u"],
        entrypoint="sh", detach=True,
    )  # fmt: skip
    assert end(container)[1].split() == [str(USER)]


@pytest.mark.engine
def test_stopped_demo_resumes_in_another_container(engine: DockerClient, output: Path) -> None:
    words = ["train", "--output", "/out", "--run-name", "demo", "--set", "train.steps_per_call=1"]
    container = start(engine, output, *words)
    wait_for_line(container, '"event": "epoch"')
    container.kill("SIGTERM")  # to tini, which forwards it
    code, output_text = end(container)
    assert code == 143, output_text
    assert "the checkpoint is safe" in output_text
    code, output_text = end(start(engine, output, *words))
    assert code == 0, output_text
    assert "Resuming after step" in output_text
    assert verify(open_store(str(output / "demo"))) == []


@pytest.mark.engine
def test_container_writes_run_to_bucket(
    engine: DockerClient, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        words = ["train", "--output", f"gs://{BUCKET}/runs", "--run-name", "demo", *QUICK]
        environment = {"STORAGE_EMULATOR_HOST": server.address}
        code, output_text = end(start(engine, output, *words, network_mode="host", environment=environment))
        assert code == 0, output_text
        runs = open_store(f"gs://{BUCKET}/runs")
        assert latest_run(runs) == "demo"
        assert verify(runs.below("demo")) == []
    assert list(output.iterdir()) == []


@pytest.mark.engine
def test_run_in_container_records_commit_and_writes_only_to_output(
    engine: DockerClient, output: Path
) -> None:
    code, output_text = end(start(engine, output, "train", "--output", "/elsewhere"))
    assert (code, "Traceback" in output_text) == (2, False), output_text  # a read-only file system
    code, output_text = end(start(engine, output, "train", "--output", "/out", "--run-name", "told", *QUICK))
    assert code == 0, output_text
    commit = json.loads((output / "told" / "environment.json").read_text())["git_commit"]
    labels = engine.images.get("trainer:cpu").attrs["Config"]["Labels"]
    assert commit == labels["org.opencontainers.image.revision"]


@pytest.mark.engine
def test_pushed_image_is_found_in_registry(engine: DockerClient, tmp_path: Path) -> None:
    project = copied_project(tmp_path / "project")
    environment = {**os.environ, "DOCKER_HOST": engine_address(engine)}
    with registry_server() as registry:
        name = f"{registry.address}/team/trainer"

        def push() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command("image", "push", "--variant", "cpu", "--name", name),
                env=environment, cwd=project, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip

        assert "The image of this source is not built" in error_line(push(), 2)
        source = find_source(project, "cpu", "python:3.12-slim")
        tags = tags_of(source, name, "cpu")
        # A tiny image suffices: the content is not checked here.
        other = [f'LABEL org.opencontainers.image.revision="{name}"' for name in ("other", source.commit)]
        for tag, change in zip((tags[0], tags[0]), other, strict=True):
            if "other" not in change:
                assert "was built from another commit" in error_line(push(), 2)
            engine.api.import_image_from_data(archive(), *tag.rsplit(":", 1), changes=[change])
        registry.is_closed = True
        refused(push(), 2, "no basic auth credentials", "that you are logged in")
        assert check_registry_image(tags[0], engine.api).state == "unknown"
        registry.is_closed = False
        assert check_registry_image(tags[0], engine.api).state == "wrong"
        done = push()
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-len(tags) :] == [f"pushed     {tag}" for tag in tags]
        for tag in tags:
            seen = check_registry_image(tag, engine.api)
            assert seen.state == "ok", seen
            assert f"team/trainer:{seen.finding}" in registry.manifests
        the_image_is_looked_for(environment, f"{name}:none", tags[0])


def the_image_is_looked_for(environment: dict[str, str], missing: str, there: str) -> None:
    """Submit a job with an image that is missing from its registry, and one with an image that exists."""
    words = ["submit", "vertex", "--recipe", "demo", "--output", "gs://bucket/runs", "--project", PROJECT]
    with vertex_server() as vertex:
        for image, code in ((missing, 2), (there, 0)):
            where = ["--region", REGION, "--endpoint", vertex.address, "--image", image, "--yes"]
            done = subprocess.run(
                command(*words, *where),
                env=environment, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == code, done.stdout + done.stderr
            assert ("push it with `trainer image push`" in done.stderr.lower()) == (code == 2), done.stderr
        assert "           sha256:" in done.stdout
        assert len(vertex.jobs) == 1


@pytest.mark.engine
def test_docker_run_is_submitted_followed_cancelled_and_resumed(engine: DockerClient, tmp_path: Path) -> None:
    environment = {**os.environ, "DOCKER_HOST": engine_address(engine)}

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            command(*words), env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    (tmp_path / "runs").mkdir()
    submit = [
        "submit", "docker", "--run-name", "pets", "--image", "trainer:cpu", "--accelerator", "cpu", "--yes",
        "--output", str(tmp_path / "runs"), "--set", "train.steps_per_call=1", "--set", "train.epochs=60",
    ]  # fmt: skip
    assert "does not have this image" in run(*submit, "--image", "trainer:none", code=2)
    text = run(*submit)
    assert "plan       job pets, cpu\n" in text
    assert "started    pets" in text
    assert "A container of this name already exists" in run(*submit, code=2)
    until = time.monotonic() + 120
    while "epoch " not in run("status", "docker", "pets").replace("no epoch yet", ""):
        assert time.monotonic() < until
    assert run("status", "docker", "pets").startswith("pets  running, since ")
    assert '"event": "epoch"' in run("logs", "docker", "pets")
    assert "ended      pets" in run("cancel", "docker", "pets")
    ended = run("status", "docker", "pets")
    assert ended.startswith("pets  stopped, at ")
    assert "exit code 143: stopped on request; the last complete checkpoint is kept" in ended
    assert "pets  stopped" in run("list", "docker")
    assert "started    pets" in run(*submit[:-2], "--set", "train.epochs=60")
    lines = run("logs", "docker", "pets", "-f")
    assert "Resuming after step" in lines
    assert run("status", "docker", "pets").startswith("pets  finished")
    assert verify(open_store(str(tmp_path / "runs" / "pets"))) == []
    engine.containers.get("pets").remove()
    assert "no jobs" in run("list", "docker")
    assert "There is no job of this name" in run("status", "docker", "pets", code=2)
    new = ["--output", str(tmp_path / "new")]
    gpu = run(*submit, *new, "--accelerator", "nvidia-l4", code=2)
    assert "The Docker engine has no GPU support for containers" in gpu
    assert "The image name is invalid" in run(*submit, *new, "--image", "Bad Image", code=2)
    assert "cannot be made" in run(*submit, "--output", "/proc/runs", code=2)
    assert "because the image uses it" in run(*submit, "--output", "/opt", code=2)
    assert not (tmp_path / "new").exists()
    assert engine.containers.list(all=True) == []  # no partly created container is left


def action_of(code: int) -> str:
    """Return the action of Kubernetes for exit code `code`: that of the first matching rule."""
    plan = JobPlan("gke", "pets", load_spec(None, "demo"), "registry/trainer", find_accelerator("cpu"))
    policy = objects_of(plan, KubernetesCluster())[0]["spec"]["podFailurePolicy"]
    for rule in policy["rules"]:
        if code in rule.get("onExitCodes", {"values": ()})["values"]:
            return str(rule["action"])
    return "Count" if code else "-"


def test_every_exit_code_has_a_case() -> None:
    assert set(CASES) == set(EXIT_CODES)


@pytest.mark.engine
@pytest.mark.parametrize("code", CASES)
def test_container_exits_with_code_and_policy_of_table(
    code: int, engine: DockerClient, output: Path, tmp_path: Path
) -> None:
    words, options, expected = CASES[code]
    is_broken, is_stopped = (options.get(name, False) for name in ("is_broken", "is_stopped"))
    arguments = {name: value for name, value in options.items() if not name.startswith("is_")}
    if is_broken:
        (module := tmp_path / "run.py").write_text(BROKEN)
        module.chmod(0o644)
        arguments["mounted"] = {str(module): "/opt/package/trainer/run.py"}
    container = start(engine, output, *words, **arguments)
    if is_stopped:
        wait_for_line(container, '"event": "epoch"')
        container.kill("SIGTERM")
    ended, text = end(container)
    assert (ended, expected in text) == (code, True), text
    assert ("Traceback" in text) == (code == 1)
    assert action_of(ended) == EXIT_CODES[code][1]
