"""`trainer shard` end to end: completed, killed, stopped and restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.bucket_server import BUCKET, bucket_server
from helpers.small_data import png, put, two_splits
from helpers.trainer_process import command, refused, trainer

from trainer.storage import hash_file, open_store


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    two_splits(root, train=9, validation=4)
    put(root / "train" / "cats" / "odd.bmp", b"not an image")
    put(root / "train" / "dogs" / "ä ö.png", png(777, side=20))
    return root


@pytest.mark.engine
def test_shard_train_and_evaluate_commands_work_together(images: Path, tmp_path: Path) -> None:
    done = trainer("shard", images, tmp_path / "shards", "--set", "data.max_rejected=0.5", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "27 images in 2 shards" in done.stdout
    assert "oneDNN" not in done.stderr
    quick = [
        "data.image_size=16",
        "model={family: plain, filters: [8]}",
        "train.epochs=2",
        "data.cache_mib=0",
    ]
    settings = [word for setting in quick for word in ("--set", setting)]
    done = trainer(
        "train",
        "--data",
        tmp_path / "shards",
        "--output",
        tmp_path / "runs",
        "--run-name",
        "a",
        *settings,
        cache=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "runs" / "a" / "dataset.json").read_text())
    assert about["layout"] == "shards"
    assert about["packed_from"]["layout"] == "folders"
    rows = (tmp_path / "runs" / "a" / "predictions.csv").read_text("utf-8").splitlines()
    assert len(rows) == 28
    assert any("ä ö.png" in row for row in rows)
    done = trainer(
        "evaluate", tmp_path / "runs" / "a", "--data", tmp_path / "shards", "--json", cache=tmp_path
    )
    found = json.loads(done.stdout)
    metrics = json.loads((tmp_path / "runs" / "a" / "metrics.json").read_text())
    assert found["validation/accuracy"] == metrics["validation/accuracy"]
    refused(trainer("shard", images, images / "x", cache=tmp_path), 2, "inside the folder of images")


@pytest.mark.engine
def test_killed_packing_leaves_no_process_and_resumes(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    process = subprocess.Popen(
        command("shard", images, output, "--processes", "1", "--set", "data.max_rejected=0.5"),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not list(output.glob("packing-scan-*.json")):
        time.sleep(0.005)
        assert process.poll() is None
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while alive_in_session(process.pid):
        assert time.monotonic() < until
        time.sleep(0.05)
    quick = ["--processes", "1", "--set", "data.max_rejected=0.5"]
    done = trainer("shard", images, output, *quick, cache=tmp_path / "cache")
    assert "27 images" in done.stdout, done.stderr


def alive_in_session(session: int) -> bool:
    """Return whether a process of this session is alive."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[3]) == session and words[0] != "Z":
            return True
    return False


@pytest.mark.parametrize("target", ["process", "group"])
def test_stopped_packing_prints_how_to_continue(images: Path, tmp_path: Path, target: str) -> None:
    process = subprocess.Popen(
        command("shard", images, tmp_path / "shards", "--processes", "1", "--set", "data.max_rejected=0.5"),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    # By then a pool process is running, which a signal to the process group reaches too.
    started = "packing-recipe.txt" if target == "process" else "packing-scan-000000.json"
    while not (tmp_path / "shards" / started).exists():
        time.sleep(0.005)
    os.kill(process.pid if target == "process" else -process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert "same command again to continue" in output


@pytest.mark.engine
def test_each_machine_downloads_only_its_share_of_a_bucket(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ["--set", "data.max_rejected=0.5", "--processes", "1"]
    whole = trainer("shard", images, tmp_path / "whole", *quick, cache=tmp_path)
    assert whole.returncode == 0, whole.stderr
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        source, store = (open_store(f"gs://{BUCKET}/{name}") for name in ("photos", "shards"))
        files = [path for path in images.rglob("*") if path.is_file()]
        for path in files:
            source.write(path.relative_to(images).as_posix(), path.read_bytes())
        machines = [
            subprocess.Popen(
                command("shard", source.uri, store.uri, *quick),
                env={
                    **os.environ,
                    "TRAINER_WORKERS": "2",
                    "JOB_COMPLETION_INDEX": str(index),
                    "XDG_CACHE_HOME": str(tmp_path / f"cache-{index}"),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]
        for machine in machines:
            output = machine.communicate(timeout=120)
            assert machine.returncode == 0, output
        packed = {entry.name: store.sha256(entry.name) for entry in store.entries()}
    expected = {path.name: hash_file(path)["sha256"] for path in (tmp_path / "whole").iterdir()}
    assert {name: digest for name, digest in packed.items() if name != "shards.json"} == {
        name: digest for name, digest in expected.items() if name != "shards.json"
    }
    for index in range(2):
        cached = (tmp_path / f"cache-{index}").rglob("*")
        outlined = [path for path in cached if path.suffix in (".png", ".bmp")]
        assert len(outlined) == len(files)
        assert {path.stat().st_blocks for path in outlined} == {0}  # placeholders without data on disk


@pytest.mark.engine
def test_two_processes_with_the_same_work_both_succeed(images: Path, tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            command("shard", images, tmp_path / "shards", "--set", "data.max_rejected=0.5"),
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"cache-{name}")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in "ab"
    ]  # fmt: skip
    output = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert not list((tmp_path / "shards").glob("packing-*"))
