"""Complete runs in a bucket: stopped, resumed on another machine, and read back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bucket_server import BUCKET, bucket_server
from helpers.fault_proxy import at_random, fault_proxy

from trainer.runs.publish import latest_run, verify
from trainer.storage import open_store
from trainer.storage.mirror import Mirror

pytestmark = pytest.mark.engine

SETTINGS = [
    "--set", "data.image_size=16", "--set", "model={family: plain, filters: [8], dropout: 0.2}",
    "--set", "train.epochs=30", "--set", "train.global_batch_size=8", "--set", "train.deterministic=true",
    "--set", "train.steps_per_call=1", "--set", "train.log_interval_seconds=0.001",
]  # fmt: skip
EQUAL = ("history.jsonl", "metrics.json", "predictions.csv")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with bucket_server(page_size=7) as server:
        yield server.address


def start(*arguments: str | Path, address: str, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "STORAGE_EMULATOR_HOST": address}
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(*arguments: str | Path, address: str, cache: Path) -> str:
    process = start(*arguments, address=address, cache=cache)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    return output


def test_run_in_a_bucket_resumes_bit_identically_on_another_machine(
    photos: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    folder = f"gs://{BUCKET}/{tmp_path.name}"
    Mirror(photos, open_store(f"{folder}/photos")).sync()
    output = f"{folder}/runs"
    arguments = ["train", "--data", f"{folder}/photos", "--output", output, *SETTINGS]

    # The run name comes from the job, so the same command resumes the run.
    monkeypatch.setenv("TRAINER_RUN_NAME", "job-1")
    process = start(*arguments, address=address, cache=tmp_path / "first machine")
    assert process.stdout is not None
    read = ""
    while '"epoch": 3,' not in (line := process.stdout.readline()):
        read += line
        assert line, read
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 143, read + rest + errors
    assert f"STORAGE_EMULATOR_HOST is set: gs:// uses {address}" in errors
    assert f"trainer train {output}/job-1/spec.yaml" in errors
    assert latest_run(open_store(output)) is None

    again = finish("train", f"{output}/job-1/spec.yaml", address=address, cache=tmp_path / "second machine")
    assert "Resuming after step" in again
    assert f"{output}/job-1/report.html" in again
    run = open_store(f"{output}/job-1")
    assert latest_run(open_store(output)) == "job-1"
    assert verify(run) == []
    assert [entry.name for entry in open_store(output).entries() if "lease" in entry.name] == []
    left = (tmp_path / "second machine" / "trainer" / "runs").iterdir()
    assert [path for path in left if path.is_dir()] == []
    done = finish(*arguments, address=address, cache=tmp_path / "third machine")
    assert "finished; there is nothing to do" in done

    monkeypatch.setenv("TRAINER_RUN_NAME", "../elsewhere")
    process = start(*arguments, address=address, cache=tmp_path)
    assert "run_name" in process.communicate(timeout=60)[1]
    assert process.returncode == 2
    monkeypatch.delenv("TRAINER_RUN_NAME")
    finish(
        "train", "--data", photos, "--output", tmp_path, "--run-name", "disk", *SETTINGS,
        address=address, cache=tmp_path / "cache",
    )  # fmt: skip
    for name in EQUAL:
        content = run.read(name)
        assert content is not None
        assert content.data == (tmp_path / "disk" / name).read_bytes(), name

    arguments = [f"{output}/latest", f"{folder}/photos/discs/0.png", "--json"]
    predicted = finish("predict", *arguments, address=address, cache=tmp_path / "fourth machine")
    assert json.loads(predicted)["label"] in ("discs", "squares", "stripes")
    assert "matches its manifest" in finish("verify", f"{output}/latest", address=address, cache=tmp_path)
    run.write("metrics.json", b"{}")
    process = start("verify", f"{output}/job-1", address=address, cache=tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 65
    assert "metrics.json has 2 bytes instead of" in errors


def test_run_over_a_faulty_network_is_complete(photos: Path, address: str, tmp_path: Path) -> None:
    output = f"gs://{BUCKET}/{tmp_path.name}"
    survived_faults = ("unavailable", "reset", "lost reply", "cut reply")
    with fault_proxy(address, at_random(1, 0.1, survived_faults)) as proxy:
        finish(
            "train", "--data", photos, "--output", output, "--run-name", "one", *SETTINGS,
            address=proxy.address, cache=tmp_path / "cache",
        )  # fmt: skip
        assert set(proxy.done) == set(survived_faults)
    checked = finish("verify", f"{output}/one", address=address, cache=tmp_path)
    assert "matches its manifest" in checked
