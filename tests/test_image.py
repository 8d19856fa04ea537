"""The image: built on a real engine, and run as a cluster would run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_server import BUCKET, bucket_server
from docker import DockerClient
from docker.models.containers import Container
from docker_engine import BASE, docker_engine, make_base
from trainer_process import command

from trainer.exits import UsageError
from trainer.launch.image import find_source, push_image, tags_of
from trainer.publish import latest_run, verify
from trainer.storage.store import open_store

ROOT = Path(__file__).parents[1]
USER = 65532
QUICK = ["--set", "train.epochs=4"]
SINGLE_FILES = (".dockerignore", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def copied_project(folder: Path) -> Path:
    """Return a copy of this project, all of it in a commit."""
    for name in ("docker", "trainer", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("requirements-*.lock"), *map(ROOT.joinpath, SINGLE_FILES)):
        shutil.copy(path, folder)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *words], check=True)
    return folder


def test_an_image_is_named_by_its_content_and_by_the_commit_that_says_all_of_it(tmp_path: Path) -> None:
    project = copied_project(tmp_path / "project")
    source = find_source(project / "trainer" / "cli", "cpu", "base")
    assert source.root == project
    assert tags_of(source, "place:5000/trainer", "cpu") == [
        f"place:5000/trainer:cpu-{source.digest}",
        f"place:5000/trainer:cpu-{source.commit}",
        "place:5000/trainer:cpu",
    ]
    (project / "tests" / "conftest.py").write_text("")  # goes into no image
    assert find_source(project, "cpu", "base").digest == source.digest
    (project / "trainer" / "exits.py").write_text("")
    changed = find_source(project, "cpu", "base")
    assert changed.is_dirty
    digests = {source.digest, changed.digest, find_source(project, "gpu", "base").digest}
    assert len(digests | {find_source(project, "cpu", "other").digest}) == 4
    assert len(tags_of(changed, "trainer", "cpu")) == 2
    with pytest.raises(UsageError, match="commit the changes first"):
        push_image(None, changed, ["trainer:cpu"], print)
    with pytest.raises(UsageError, match="project's folder"):
        find_source(tmp_path, "cpu", "base")


ADDRESS: list[str] = []
"""Of the engine."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerClient]:
    """An engine that has the image trainer:cpu."""
    folder = tmp_path_factory.mktemp("engine")
    with docker_engine(folder) as client:
        make_base(client, folder)
        done = subprocess.run(
            command("image", "build", "--variant", "cpu", "--base", BASE, "--network", "host"),
            env={**os.environ, "DOCKER_HOST": f"unix://{folder}/socket"},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        ADDRESS[:] = [f"unix://{folder}/socket"]
        yield client


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder that the image's user may write."""
    (folder := tmp_path / "out").mkdir()
    os.chown(folder, USER, USER)
    return folder


def start(engine: DockerClient, output: Path, *words: str, **options: object) -> Container:
    """Start the image as a restricted pod: nothing to write but what is mounted, no rights, little memory."""
    return engine.containers.run(
        "trainer:cpu", list(words), detach=True, read_only=True, tmpfs={"/tmp": ""}, cap_drop=["ALL"],
        security_opt=["no-new-privileges"], mem_limit="3g", volumes=[f"{output}:/out"], **options,
    )  # fmt: skip


def end(container: Container) -> tuple[int, str]:
    code = int(container.wait(timeout=240)["StatusCode"])
    said = container.logs().decode()
    container.remove()
    return code, said


@pytest.mark.engine
def test_the_image_holds_what_it_needs_and_no_tools(engine: DockerClient) -> None:
    about = engine.images.get("trainer:cpu").attrs
    assert about["Config"]["User"] == f"{USER}:{USER}"
    assert about["Config"]["Entrypoint"] == ["/usr/bin/tini", "--", "/opt/package/bin/trainer"]
    labels = about["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 12
    assert about["Size"] <= 1.35e9
    container = engine.containers.run(
        "trainer:cpu", ["-c", "for name in gcc cc pip strip; do command -v $name; done; id -u"],
        entrypoint="sh", detach=True,
    )  # fmt: skip
    assert end(container)[1].split() == [str(USER)]


@pytest.mark.engine
def test_the_demo_is_stopped_and_goes_on_in_another_container(engine: DockerClient, output: Path) -> None:
    words = ["train", "--output", "/out", "--run-name", "demo", "--set", "train.steps_per_call=1"]
    container = start(engine, output, *words)
    until = time.monotonic() + 120
    while '"event": "epoch"' not in container.logs().decode():
        assert time.monotonic() < until
        time.sleep(0.2)
    container.kill("SIGTERM")  # to tini, which passes it on
    code, said = end(container)
    assert code == 143, said
    assert "the checkpoint is safe" in said
    code, said = end(start(engine, output, *words))
    assert code == 0, said
    assert "continuing after step" in said
    assert verify(open_store(str(output / "demo"))) == []


@pytest.mark.engine
def test_a_bucket_is_written_from_a_container(
    engine: DockerClient, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        words = ["train", "--output", f"gs://{BUCKET}/runs", "--run-name", "demo", *QUICK]
        environment = {"STORAGE_EMULATOR_HOST": server.address}
        code, said = end(start(engine, output, *words, network_mode="host", environment=environment))
        assert code == 0, said
        runs = open_store(f"gs://{BUCKET}/runs")
        assert latest_run(runs) == "demo"
        assert verify(runs.below("demo")) == []
    assert list(output.iterdir()) == []


@pytest.mark.engine
def test_what_a_user_gets_wrong_ends_a_container_with_the_code_of_the_table(
    engine: DockerClient, output: Path
) -> None:
    for words, expected in (
        (["train", "--set", "train.epoks=3"], 2),
        (["train", "--output", "/elsewhere"], 2),  # a read-only file system
        (["train", "--data", "/nowhere", "--output", "/out"], 65),
        (["train", "--output", "/out", "--require-accelerator", "gpu"], 69),
    ):
        code, said = end(start(engine, output, *words))
        assert (code, "Traceback" in said, "Error: " in said) == (expected, False, True), said


@pytest.mark.engine
def test_a_run_is_submitted_followed_cancelled_and_goes_on(engine: DockerClient, tmp_path: Path) -> None:
    environment = {**os.environ, "DOCKER_HOST": ADDRESS[0]}

    def said(*words: str, code: int = 0) -> str:
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
    assert "doesn't have this image" in said(*submit, "--image", "trainer:none", code=2)
    text = said(*submit)
    assert "plan       job pets, cpu (n1-standard-8)" in text
    assert "started    pets" in text
    assert "is a container of this name" in said(*submit, code=2)
    until = time.monotonic() + 120
    while "epoch " not in said("status", "docker", "pets").replace("no epoch yet", ""):
        assert time.monotonic() < until
    assert said("status", "docker", "pets").startswith("pets  running, since ")
    assert '"event": "epoch"' in said("logs", "docker", "pets")
    assert "ended      pets" in said("cancel", "docker", "pets")
    ended = said("status", "docker", "pets")
    assert ended.startswith("pets  failed, at ")
    assert "exit code 143: stopped on request, checkpoint safe" in ended
    assert "pets  failed" in said("list", "docker")
    engine.containers.get("pets").remove()
    assert "started    pets" in said(*submit[:-2], "--set", "train.epochs=60")
    lines = said("logs", "docker", "pets", "-f")
    assert "continuing after step" in lines
    assert said("status", "docker", "pets").startswith("pets  finished")
    assert verify(open_store(str(tmp_path / "runs" / "pets"))) == []
    engine.containers.get("pets").remove()
    assert "no jobs" in said("list", "docker")
    assert "There is no such job" in said("status", "docker", "pets", code=2)
    gpu = said(*submit, "--accelerator", "nvidia-l4", code=2)
    assert "The engine has no GPU for containers" in gpu
    assert engine.containers.list(all=True) == []  # nothing half-made is left
