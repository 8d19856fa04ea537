"""`trainer repeat`: one run per seed, resuming, and the summary of the runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.trainer_process import QUICK, command, error_line, trainer

from trainer.cli.app import cli
from trainer.errors import UsageError
from trainer.evaluate.significance import mean_interval


def repeated(photos: Path, folder: Path, *words: str) -> list[str | Path]:
    return ["repeat", "--data", photos, "--output", folder / "runs", "--run-name", "pets", *QUICK, *words]


@contextmanager
def at_work(photos: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a `repeat` process whose first run has just finished epoch 1 of 400."""
    words = repeated(photos, tmp_path, "--times", "2", "--set", "train.epochs=400")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "NO_COLOR": "1"}
    with subprocess.Popen(
        command(*words), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if '"event": "epoch"' in line)
        yield process


@pytest.mark.engine
def test_each_seed_is_a_run_and_a_second_call_trains_none(photos: Path, tmp_path: Path) -> None:
    words = repeated(photos, tmp_path, "--seeds", "3,5", "--json")
    done = trainer(*words, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [run["name"] for run in told["runs"]] == ["pets-seed-3", "pets-seed-5"]
    for seed in (3, 5):
        run = tmp_path / "runs" / f"pets-seed-{seed}"
        assert f"\nseed: {seed}\n" in (run / "spec.yaml").read_text()
        assert (run / "_SUCCESS").exists()
    accuracies = [run["accuracy"] for run in told["runs"]]
    assert told["spread"]["mean"] == pytest.approx(mean_interval(accuracies)[0])
    assert told["comparisons"][0]["is_paired"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    again = trainer(*words, cache=tmp_path / "cache")
    assert json.loads(again.stdout) == told
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert again.stderr.count("This run is finished") == 2


@pytest.mark.engine
def test_signal_is_forwarded_and_the_same_command_resumes(photos: Path, tmp_path: Path) -> None:
    with at_work(photos, tmp_path) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)  # to this process only, as a cluster does
        rest = process.stdout.read()
        assert process.wait(60) == 143, rest
    assert "the checkpoint is safe" in rest
    run = tmp_path / "runs" / "pets-seed-0"
    assert list((run / "checkpoints").iterdir())
    assert not (run / "_SUCCESS").exists()
    assert not (tmp_path / "runs" / "pets-seed-1").exists()


def refusal(*words: str | Path) -> str:
    """Run a command in this process and return the message of its `UsageError`."""
    with pytest.raises(UsageError) as refused:
        CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    return str(refused.value)


def test_invalid_repetition_is_rejected(photos: Path, tmp_path: Path) -> None:
    words = repeated(photos, tmp_path, "--seeds", "1")
    assert "--seeds requires at least two" in error_line(trainer(*words, cache=tmp_path), 2)
    for seeds in ("1,1", "a,b", "-1,2", "1,,2", "1,2147483648", "\uff11,2", "1_0,2"):
        words = repeated(photos, tmp_path, "--seeds", seeds)
        assert "--seeds requires at least two" in refusal(*words)
    # The seed and name of the last run are checked before the first run starts.
    for more, words in (
        (["--set", "seed=2147483647", "--times", "2"], "seed"),
        (["--run-name", "a" * 124], "name"),
    ):
        assert words in refusal(*repeated(photos, tmp_path), *more)
    for start in ("latest", str(tmp_path / "runs" / "latest")):
        words = repeated(photos, tmp_path, "--set", f"train.start_from={start}")
        assert "start from the weights of the previous one" in refusal(*words)
    assert not (tmp_path / "runs").exists()
    words = repeated(tmp_path / "nowhere", tmp_path)
    done = trainer(*words, cache=tmp_path)
    assert done.returncode == 65, done.stderr
    assert "did not finish. See the error above." in done.stderr


@pytest.mark.engine
def test_repeated_runs_are_new_and_kept_and_have_the_same_data(photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    kept = ["--set", "publish.keep_runs=1", "--set", "publish.skip_unchanged=true", "--set", "train.epochs=1"]
    words = repeated(data, tmp_path, *kept, "--set", "publish.release=true")
    done = trainer(*words, "--times", "2", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "standard deviation" in done.stdout
    assert not (tmp_path / "runs" / "champion").exists()  # the best of several runs is partly chance
    # All start from one run, and are the same runs whatever the working directory of the command.
    runs = tmp_path / "runs"
    assert trainer("promote", runs / "pets-seed-1", "--force", cache=tmp_path).returncode == 0
    begun = [
        "repeat",
        *QUICK,
        "--times",
        "2",
        *("--set", "train.epochs=1", "--set", "train.start_from=champion"),
    ]
    for places, cwd, finished in ((("runs", "photos"), tmp_path, 0), ((runs, data), None, 2)):
        named = ["--output", places[0], "--data", places[1]]
        done = trainer(*begun, *named, cwd=cwd, cache=tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).count("This run is finished") == finished
    started = [
        json.loads(path.read_text())["started_from"]
        for path in runs.glob("*/environment.json")
        if not path.parent.name.startswith("pets")
    ]
    assert started == [str(runs / "pets-seed-1")] * 2
    (data / "discs" / "0.png").unlink()
    said = error_line(trainer(*words, "--times", "3", cache=tmp_path / "cache"), 65)
    assert "Received: pets-seed-0 and pets-seed-2" in said


@pytest.mark.engine
def test_killed_run_is_reported(photos: Path, tmp_path: Path) -> None:
    with at_work(photos, tmp_path) as process:
        assert process.stdout is not None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        rest = process.stdout.read()
        assert process.wait(60) == 137, rest
    assert "did not finish. Run the same command to resume" in rest
