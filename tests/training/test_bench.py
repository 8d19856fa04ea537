"""Training bottleneck: measurement and description."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.trainer_process import QUICK, command, refused, trainer

from trainer.training.bench import Limit, Speeds


def speeds(step: float, pipeline: float, together: float) -> Speeds:
    return Speeds(step, pipeline, together, 1.0, 4, "float32", False, "cpu", 1, 20)


@pytest.mark.parametrize(
    ("step", "pipeline", "together", "limit", "words"),
    [
        (100.0, 400.0, 98.0, "step", "4.0 times as fast"),
        (100.0, 40.0, 39.0, "data", "the step is 2.5 times as fast"),
        (100.0, 120.0, 60.0, "processor", "60% of the speed of the slower one"),
        (100.0, 5000.0, 80.0, "step", "50.0 times"),  # noise of the machine, not contention
    ],
)
def test_limit_is_the_slower_part_or_the_shared_processor(
    step: float, pipeline: float, together: float, limit: Limit, words: str
) -> None:
    measured = speeds(step, pipeline, together)
    assert measured.limit == limit
    assert words in measured.sentence()
    assert measured.advice()


def test_gpu_is_limited_by_the_transfer_and_not_by_the_processor() -> None:
    measured = replace(speeds(100.0, 120.0, 60.0), devices="gpu: NVIDIA L4")
    assert "transfer to the device: together they reach 60%" in measured.sentence()


@pytest.mark.engine
def test_bench_measures_and_writes_no_files(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        command("bench", "--data", photos, *QUICK, "--seconds", "1", "--json"),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}, cwd=tmp_path / "here",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert min(figures["step"], figures["pipeline"], figures["together"]) > 0
    assert figures["limit"] in ("step", "data", "processor")
    assert figures["global_batch_size"] == 8
    assert figures["steps_per_call"] == 2  # a call has at most the two full batches of an epoch
    assert figures["sentence"]
    assert figures["advice"]
    assert list((tmp_path / "here").iterdir()) == []
    fixed = ["--set", "train.precision=float32", "--set", "train.steps_per_call=1"]
    done = trainer("bench", "--data", photos, *QUICK, *fixed, "--seconds", "1", cache=tmp_path)
    assert "float32 (set), no XLA, 1 step a call (set), batches of 8" in done.stdout
    assert "limit" in done.stdout
    assert "images/s, both together" in done.stdout


def test_bench_rejects_invalid_settings_and_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(trainer("bench", "--data", tmp_path / "nowhere", cache=tmp_path), 65, "no such folder")
    refused(trainer("bench", "--set", "train.epoch=3", cache=tmp_path), 2, "train.epochs")
    refused(trainer("bench", "--require-accelerator", "gpu", cache=tmp_path), 69, "GPU")
    monkeypatch.setenv("TRAINER_WORKERS", "2")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    refused(trainer("bench", cache=tmp_path), 2, "2 processes")


@pytest.mark.engine
def test_bench_stops_on_sigint(photos: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("bench", "--data", photos, *QUICK, "--seconds", "600"),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith("data"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "Traceback" not in errors
