"""End-to-end runs that are stopped, lose their source, memory or disk, or have invalid arguments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from helpers.small_disk import small_disk
from helpers.trainer_process import QUICK, command, refused, trainer

from trainer.errors import UsageError
from trainer.runs import open_run_folder
from trainer.runs.publish import is_finished, verify
from trainer.spec import load_spec
from trainer.storage.folder import FolderStore


@pytest.mark.engine
def test_run_stopped_by_sigterm_resumes_bit_identically(photos: Path, tmp_path: Path) -> None:
    settings = [
        *QUICK, "--set", "train.epochs=40", "--set", "train.steps_per_call=1",
        "--set", "train.grace_seconds=60",
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    arguments = ["--data", photos, "--output", tmp_path, *settings]
    process = subprocess.Popen(
        command(*arguments, "--run-name", "stopped", module="trainer.task"),
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    history = tmp_path / "stopped" / "history.jsonl"
    while not history.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, out + err
    assert "checkpoint is safe" in err
    assert "Traceback" not in err
    again = trainer("train", tmp_path / "stopped" / "spec.yaml", cache=tmp_path / "cache")
    assert again.returncode == 0, again.stderr
    assert "Resuming after step" in again.stdout
    whole = trainer(*arguments, "--run-name", "whole", cache=tmp_path / "cache", module="trainer.task")
    assert whole.returncode == 0
    for name in ("predictions.csv", "metrics.json", "history.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ends = [np.load(max((tmp_path / name).glob("checkpoints/step-*"))) for name in ("stopped", "whole")]
    weights = [name for name in ends[0].files if name != "record.json"]
    assert weights
    for name in weights:
        np.testing.assert_array_equal(ends[0][name], ends[1][name], err_msg=name)


@pytest.mark.engine
def test_failed_first_start_keeps_its_checkpoint(photos: Path, tmp_path: Path) -> None:
    settings = [*QUICK, "--set", "train.epochs=60", "--set", "train.steps_per_call=1"]
    arguments = ["--data", photos, "--output", tmp_path, "--run-name", "first", *settings]
    process = subprocess.Popen(
        command(*arguments, module="trainer.task"),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    history = tmp_path / "first" / "history.jsonl"
    while not history.exists() and process.poll() is None:
        time.sleep(0.05)
    (tmp_path / "first" / "dataset.json").unlink()  # a required file of a run
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "Files of this run were removed during training" in err
    assert list((tmp_path / "first" / "checkpoints").glob("step-*"))
    assert (tmp_path / "first" / "spec.yaml").exists()


@pytest.mark.engine
@pytest.mark.parametrize("removed", ["run", "output"])
def test_removed_run_stops_and_the_same_command_starts_it_again(
    removed: str, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    arguments = ["train", "--data", photos, "--output", output, "--run-name", "gone", *QUICK]
    process = subprocess.Popen(
        command(*arguments, "--set", "train.epochs=4000", "--set", "train.steps_per_call=1"),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (output / "gone" / "history.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    subprocess.run(["mv", output / "gone" if removed == "run" else output, tmp_path / "moved"], check=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, out + err
    assert err.count("Error: ") == 1
    assert "The run was removed during training" in err
    assert "Traceback" not in err
    again = trainer(*arguments, cache=tmp_path / "cache")
    assert again.returncode == 0, again.stderr
    assert verify(FolderStore(output / "gone")) == []


@pytest.mark.engine
def test_paused_process_does_not_change_a_run_published_by_another_process(
    photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "one"
    arguments = ["train", "--data", photos, "--output", tmp_path, "--run-name", "one", *QUICK]
    paused = subprocess.Popen(
        command(*arguments), env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not list(run.glob("plots/*.png")) and paused.poll() is None:
            time.sleep(0.01)
        paused.send_signal(signal.SIGSTOP)  # most of the report is not written yet
        assert not is_finished(FolderStore(run))
        second = trainer(*arguments, cache=tmp_path / "cache")
        assert second.returncode == 0, second.stderr
        assert "checking whether it is alive" in second.stdout
        paused.send_signal(signal.SIGCONT)
        errors = paused.communicate(timeout=120)[1]
    finally:
        paused.kill()
        paused.communicate()
    assert (paused.returncode, "has taken over this run" in errors) == (75, True), errors
    assert verify(FolderStore(run)) == []


@pytest.mark.engine
def test_run_finishes_if_its_source_is_removed_during_training(photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    settings = [*QUICK, "--set", "train.epochs=60", "--set", "train.steps_per_call=1"]
    process = subprocess.Popen(
        command("train", "--data", data, "--output", tmp_path, "--run-name", "one", *settings),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "one" / "history.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    shutil.rmtree(data / "discs")
    for path in (data / "stripes").iterdir():
        path.write_bytes(b"something else")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "from the cache: the source has changed" in out
    assert is_finished(FolderStore(tmp_path / "one"))


@pytest.mark.engine
def test_user_errors_are_reported_without_a_traceback(photos: Path, tmp_path: Path) -> None:
    base = ["train", "--output", tmp_path / "out", *QUICK]
    refused(trainer(*base, "--data", tmp_path / "missing", cache=tmp_path), 65, "missing")
    (tmp_path / "empty").mkdir()
    refused(trainer(*base, "--data", tmp_path / "empty", cache=tmp_path), 65, "no ")
    # Runs that did not start leave no files.
    assert list((tmp_path / "out").glob("*/")) == []
    refused(trainer(*base, "--data", next(photos.rglob("*.png")).parent, cache=tmp_path), 65, "class")
    refused(trainer("train", "--recipe", "cats", cache=tmp_path), 2, "cats-vs-dogs")
    refused(trainer("train", tmp_path / "spec.yaml", cache=tmp_path), 2, "cannot be read")
    taken = tmp_path / "file"
    taken.write_text("other")
    refused(trainer("train", "--data", photos, "--output", taken, *QUICK, cache=tmp_path), 2, "file")
    assert taken.read_text() == "other"
    refused(
        trainer(*base, "--data", photos, "--set", "train.class_weights={unicorn: 2}", cache=tmp_path),
        2,
        "unicorn",
    )


@pytest.mark.engine
def test_out_of_memory_is_reported_with_advice(photos: Path, tmp_path: Path) -> None:
    # A dense layer of a billion units allocates hundreds of gigabytes at once.
    units = ["--set", "model={family: plain, filters: [8], dense_units: [1000000000]}"]
    done = trainer("train", "--data", photos, "--output", tmp_path, *QUICK, *units, cache=tmp_path)
    refused(done, 137, "memory", "train.global_batch_size")


@pytest.mark.engine
def test_full_disk_is_reported_and_the_same_command_finishes_with_more_space(
    photos: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "size=300k") as disk:
        arguments = ["train", "--data", photos, "--output", disk, "--run-name", "tight", *QUICK]
        refused(trainer(*arguments, cache=tmp_path), 75, "disk", "ree some space")
        run = disk / "tight"
        assert (run / "history.jsonl").exists()
        assert not (run / "model").exists()
        assert not (run / "_SUCCESS").exists()
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        again = trainer(*arguments, cache=tmp_path)
        assert again.returncode == 0, again.stderr
        assert "Resuming after step" in again.stdout
        assert is_finished(FolderStore(run))
        assert verify(FolderStore(run)) == []


@pytest.mark.engine
def test_resumed_run_keeps_its_precision_on_another_machine(photos: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data", photos, "--output", tmp_path, "--run-name", "moved", *QUICK]
    precision = "train.precision=auto"
    stopped = subprocess.Popen(
        command(*arguments, "--set", precision, "--set", "train.epochs=400"),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "moved" / "history.jsonl").exists() and stopped.poll() is None:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    assert "checkpoint is safe" in stopped.communicate(timeout=120)[1]
    about = tmp_path / "moved" / "environment.json"
    began = json.loads(about.read_text())["precision"]
    other = {"float32": "bfloat16", "bfloat16": "float32"}[began]
    about.write_text(json.dumps(json.loads(about.read_text()) | {"precision": other}))
    spec = (tmp_path / "moved" / "spec.yaml").read_text()
    assert "precision: auto" in spec
    again = subprocess.Popen(
        command("train", tmp_path / "moved" / "spec.yaml"),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert again.stdout is not None
    output = ""
    while "Resuming after step" not in output:
        line = again.stdout.readline()
        assert line, again.communicate()
        output += line
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=120)
    assert f", {other};" in output


def test_run_without_its_starts_file_is_rejected(tmp_path: Path) -> None:
    spec = load_spec(overrides={"output": str(tmp_path / "runs"), "run_name": "one"})
    folder = open_run_folder(spec, datetime(2026, 11, 30, tzinfo=timezone.utc), tmp_path / "cache")
    (folder.path / "environment.json").write_text("{}")
    folder.release()
    with pytest.raises(
        UsageError,
        match=r"starts\.jsonl, the log of the starts of this run, is missing.*Received: .*one/starts\.jsonl",
    ):
        open_run_folder(spec, datetime(2026, 11, 30, tzinfo=timezone.utc), tmp_path / "cache")
    (folder.path / "starts.jsonl").write_text("")
    open_run_folder(spec, datetime(2026, 11, 30, tzinfo=timezone.utc), tmp_path / "cache").release()
