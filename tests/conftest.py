"""Shared fixtures: library environment, buckets, a Docker engine, HTTPS servers and images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from docker import DockerClient
from helpers.bucket_server import BUCKET, bucket_server
from helpers.docker_engine import BASE, USER, docker_engine, make_base
from helpers.downloads import trusted_server
from helpers.https_server import HttpsServer
from helpers.photos import draw_photo

from trainer.cli.bootstrap import prepare_libraries
from trainer.storage import open_store
from trainer.storage.store import Store

# As the command line does: TensorFlow reads its environment variables once, on import.
prepare_libraries()

# Rewrite its assertions too, so that failures show the compared values.
pytest.register_assert_rewrite("helpers.trainer_process")
pytest_plugins = ["helpers.kube_cluster"]


SLOWEST = [
    "image", "faults", "many_hosts", "retraining", "release", "repeat", "run_failures", "bucket_run",
    "situations", "compare_command", "run", "step", "resume", "packing", "drift", "warm_start",
    "shard_command", "export", "layout_runs", "train", "vertex", "scaling", "cut_off", "bench", "colab",
    "formats", "lease", "shards", "decode", "program", "integrity", "retention_faults", "process_group",
    "membership", "gke", "packaging",
]  # fmt: skip
"""Test files with the longest run time, slowest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that none of them is left to one process at the end."""
    places = {f"test_{name}.py": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _no_endpoint_but_that_of_a_test() -> Iterator[None]:
    """Remove the suite's endpoint from the environment; a test that needs a bucket sets it itself.

    Commands print a note when it is set, which would change the output in unrelated tests.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("STORAGE_EMULATOR_HOST", raising=False)
        yield


@pytest.fixture(scope="session")
def bucket_address() -> Iterator[str]:
    """Address of an emulated bucket, `BUCKET`."""
    with bucket_server() as server:
        yield server.address


@pytest.fixture(params=["folder", "bucket"])
def either_store(
    request: pytest.FixtureRequest, bucket_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """An empty store, once in a local folder and once in a bucket."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket_address)
    place = str(tmp_path / "runs") if request.param == "folder" else f"gs://{BUCKET}/{tmp_path.name}"
    return open_store(place)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerClient]:
    """Docker engine with this project's image trainer:cpu; skips if no engine is available."""
    folder = tmp_path_factory.mktemp("engine")
    with docker_engine(folder) as client:
        make_base(client, folder)
        done = subprocess.run(
            [sys.executable, "-m", "trainer.cli", "image", "build", "--variant", "cpu", "--base", BASE,
             "--network", "host"],
            env={**os.environ, "DOCKER_HOST": f"unix://{folder}/socket"},
            cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        yield client


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """Certificate authority of the HTTPS servers in the tests."""
    return trustme.CA()


@pytest.fixture
def server(ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpsServer]:
    """An HTTPS server whose certificate is trusted in this test."""
    with trusted_server(ca, tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder writable for the image's user."""
    (folder := tmp_path / "out").mkdir()
    os.chown(folder, USER, USER)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only folder of three classes with eight 40 x 32 PNG images each, separable by a tiny network.

    Discs are red, squares green and stripes blue; position and shade differ between the images.
    """
    root = tmp_path_factory.mktemp("data") / "photos"
    for name in ("discs", "squares", "stripes"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            draw_photo(name, number).save(root / name / f"{number}.png")
    return root
