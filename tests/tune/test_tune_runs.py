"""End-to-end searches: stopping, resuming and sharing a study, and pruning a trial."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.trainer_process import QUICK, command, trainer

from trainer.cli.trials import train_trial
from trainer.cli.tune import TrialJob
from trainer.spec import RunSpec, load_spec
from trainer.storage import open_store
from trainer.tune.parameters import parse_parameters
from trainer.tune.search import Search
from trainer.tune.study import Records, Trial

RATE = "optimizer.learning_rate=1e-4..1e-1:log"


def tuned(data: Path, folder: Path) -> list[str | Path]:
    return [
        "tune", "--data", data, "--output", folder / "runs", "--run-name", "study", *QUICK, "--trials", "2",
        "--set", "optimizer.name=sgd", "--parameter", RATE,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def with_test_images(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos with a train and a test split, and no validation split."""
    root = tmp_path_factory.mktemp("split")
    shutil.copytree(photos, root / "train")
    for path in sorted((root / "train").glob("*/[67].png")):
        (root / "test" / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(root / "test" / path.parent.name / path.name)
    return root


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def begun(
    words: list[str | Path], environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a search; yield its process and the process ID of its first trial."""
    with subprocess.Popen(command(*words), env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("trial-000  optimizer"))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text():
            time.sleep(0.1)
        yield process, int(children.read_text().split()[0])


@pytest.mark.engine
def test_stopped_search_continues_without_repeating_finished_trials(
    with_test_images: Path, tmp_path: Path
) -> None:
    words = tuned(with_test_images, tmp_path)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "NO_COLOR": "1"}
    worker = environment | {"TRAINER_WORKERS": "2", "JOB_COMPLETION_INDEX": "1"}
    done = subprocess.run(command(*words), env=worker, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 trials finished" in done.stdout
    for victim in ("trial", "search"):
        with begun(words, environment) as (process, child):
            os.kill(child if victim == "trial" else process.pid, signal.SIGKILL)
            assert process.wait(60) == (137 if victim == "trial" else -signal.SIGKILL)
            while is_alive(child):  # it exits by itself when its parent is gone
                time.sleep(0.1)
    assert not (tmp_path / "runs" / "study" / "trial-000" / "_SUCCESS").exists()
    assert Records(open_store(str(tmp_path / "runs" / "study"))).read(0) == Trial(
        0, {"optimizer.learning_rate": 0.001}
    )
    with subprocess.Popen(command(*words), env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("trial-000  epoch 1/2"))
        process.send_signal(signal.SIGTERM)  # to this process only, as a cluster does
        rest = process.stderr.read()
        assert process.wait(60) == 143, rest
    assert "Run the same command to resume the study" in rest
    study = tmp_path / "runs" / "study"
    settings = json.loads((study / "trials" / "000.json").read_text())["settings"]
    assert settings == {"optimizer.learning_rate": 0.001}  # the value in the spec
    before = {path: path.stat().st_mtime_ns for path in (study / "trial-001").rglob("*")}
    done = trainer(*words, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (study / "trial-001").rglob("*")}
    summary = json.loads((study / "summary.json").read_text())
    assert {trial["name"]: trial["state"] for trial in summary["trials"]} == {
        "trial-000": "complete", "trial-001": "complete",
    }  # fmt: skip
    (first,) = [trial for trial in summary["trials"] if trial["name"] == "trial-000"]
    assert first["settings"] == settings
    for run in ("trial-000", "trial-001"):
        splits = json.loads((study / run / "dataset.json").read_text())["splits"]
        assert {name: each["images"] for name, each in splits.items()} == {"train": 14, "validation": 4}
        assert "test/" not in (study / run / "metrics.json").read_text()
    best = shlex.split(summary["command"])
    assert best[1:] == [
        "train", *map(str, words[1:5]), *QUICK, "--set", "optimizer.name=sgd", "--set",
        f"optimizer.learning_rate={summary['trials'][0]['settings']['optimizer.learning_rate']}",
    ]  # fmt: skip
    assert (study / "summary.txt").read_text() == done.stdout[: done.stdout.index("summary  ")]


@pytest.mark.engine
def test_pruned_trial_stops_with_a_checkpoint(
    with_test_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = job_of(with_test_images, tmp_path)
    records = Records(job.store)
    for number in range(4):
        settings = {"optimizer.learning_rate": 0.01 + number / 100}
        records.write(Trial(number, settings, "complete", 1.0, dict.fromkeys(range(1, 41), 1.0)))
    records.write(Trial(4, {"optimizer.learning_rate": 1e-4}))
    assert train_trial(job, 4)
    trial = Records(job.store).read(4)
    assert trial is not None
    assert trial.state == "pruned"
    assert len(trial.values) == 1
    assert list((tmp_path / "study" / "trial-004" / "checkpoints").glob("step-*.npz"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert train_trial(job, 4)  # the trial already has a result
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def job_of(data: Path, folder: Path) -> TrialJob:
    settings = [*QUICK[1::2], "optimizer.name=sgd", "train.epochs=40", "data.held_out=validation"]
    base: RunSpec = load_spec(settings=settings, overrides={"data.source": str(data), "output": str(folder)})
    store = open_store(str(folder / "study"))
    return TrialJob(
        base,
        store,
        Search(parse_parameters([RATE], base), 7, is_maximized=True, warmup_epochs=0),
        "accuracy",
        5,
        (0, 1),
        (),
        ("trainer", "train"),
    )
