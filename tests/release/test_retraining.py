"""Scheduled retraining: a run is skipped when neither its data nor its spec has changed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from helpers.bucket_server import BUCKET
from helpers.downloads import trusted_server
from helpers.https_server import HttpsServer, Served
from helpers.trainer_process import QUICK, error_line, trainer

from trainer.runs.publish import latest_run
from trainer.storage import open_store


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpsServer]:
    with trusted_server(trustme.CA(), tmp_path, monkeypatch) as server:
        yield server


@pytest.mark.parametrize("place", ["folder", "bucket"])
@pytest.mark.engine
def test_run_with_unchanged_data_and_spec_is_skipped(
    place: str,
    photos: Path,
    tmp_path: Path,
    bucket_address: str,
    server: HttpsServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket_address)
    output = str(tmp_path / "runs") if place == "folder" else f"gs://{BUCKET}/{tmp_path.name}"
    data = shutil.copytree(photos, tmp_path / "photos")
    store = open_store(output)

    def source(name: str) -> str:
        """Return the folder, or a URL of its archive with a new signature for each run."""
        if place == "folder":
            return str(data)
        archive = Path(shutil.make_archive(str(tmp_path / name), "zip", data))
        server.files[address := f"/photos.zip?sig=of-{name}"] = Served(archive.read_bytes(), etag=f'"{name}"')
        return server.url(address)

    def run(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        done = trainer(
            "train", "--data", source(name), "--output", output, "--run-name", name, *QUICK,
            "--set", "train.epochs=1", "--set", "publish.skip_unchanged=true", *more,
            cache=tmp_path / "cache",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "sig=" not in done.stdout + done.stderr
        return done

    run("monday")
    assert latest_run(store) == "monday"
    before = [entry.name for entry in store.entries()]
    output_text = run("tuesday").stdout
    assert "neither the data nor the spec has changed since the run monday" in output_text
    assert "report " not in output_text
    assert [entry.name for entry in store.entries()] == before
    assert place == "bucket" or not (tmp_path / "runs" / "tuesday").exists()
    shutil.copy(data / "discs" / "0.png", data / "discs" / "0 again.png")
    assert "nothing to do" not in run("wednesday").stdout
    assert latest_run(store) == "wednesday"
    if place == "bucket":
        return
    assert "nothing to do" not in run("thursday", "--set", "seed=5").stdout
    # A skipped run still applies its own gates (release, minimum accuracy) to the unchanged run.
    released = run("friday", "--set", "seed=5", "--set", "publish.release=true").stdout
    assert "since the run thursday" in released
    assert "thursday does not become champion, and there is no champion yet: it is no better than" in released
    again = run("friday", "--set", "seed=5", "--set", "publish.release=true").stdout
    assert "decided earlier" in again
    claimed = trainer(
        "train", "--data", data, "--output", output, "--run-name", "friday", *QUICK,
        "--set", "train.epochs=1", "--set", "publish.skip_unchanged=true", "--set", "seed=5",
        "--assert-accuracy-at-least", "1", cache=tmp_path / "cache",
    )  # fmt: skip
    assert "since the run thursday" in claimed.stdout
    assert error_line(claimed, 4).startswith("Error: The model is less accurate than required")
    assert (
        "nothing to do"
        not in run("saturday", "--set", "seed=5", "--set", "publish.skip_unchanged=false").stdout
    )
