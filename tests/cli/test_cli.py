"""Command line: help, terminal and log output, and errors before any work."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from helpers.trainer_process import trainer

from trainer.cli.app import cli
from trainer.cli.config import load_run_spec
from trainer.cli.environment import cache_folder
from trainer.cli.paths import local_model, require_apart, require_unmoved
from trainer.data.progress import SilentProgress
from trainer.errors import UsageError
from trainer.recipes import recipe_names
from trainer.spec import load_spec

SHOW = """
from trainer.cli.console import Console
from trainer.cli.bootstrap import import_tensorflow
import_tensorflow()
from trainer.training.loop import CallReport
import time

with Console(0.0) as console:
    console.banner()
    console.on_fact("run", "runs/x")
    task = console.start("Decoding", 3, "images")
    for _ in range(3):
        task.advance(1)
        time.sleep(0.15)
    task.finish()
    console.on_fact("data", "Found 2 train and 1 validation images in 2 classes: a, b")
    for step in range(1, 4):
        console.on_call(CallReport(12, 100, step, 300, 0.5123, 0.78123, 141.2, 0.0041))
        time.sleep(0.15)
    console.on_epoch(
        {"epoch": 12, "train/loss": 0.5, "train/accuracy": 0.75, "validation/loss": 0.6,
         "validation/accuracy": 0.7, "images_per_second": 141.0, "wait_share": 0.004}, 100)
    console.on_message("something to know")
    console.verdict("validation accuracy 0.924", "Go on.")
"""


def show(terminal: bool) -> str:
    """Return the console output of a separate process, on a pseudo-terminal or into a pipe."""
    command = [sys.executable, "-c", SHOW]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    if not terminal:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    leader, follower = pty.openpty()
    process = subprocess.Popen(command, env=environment, stdout=follower, stderr=follower)
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    output = b"".join(chunks).decode()
    assert process.wait() == 0, output
    return output


def test_terminal_output_has_bars_and_lines_of_at_most_80_columns() -> None:
    output = show(terminal=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
    assert "━" in plain
    assert "epoch 12/100" in plain
    assert "0.781" in plain
    assert "141 img/s  wait 0%" in plain
    assert "train / validation" in plain
    assert "loss 0.500 / 0.600  acc 0.750 / 0.700" in plain
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 80


def test_log_output_has_no_bars_or_colours_and_progress_as_json() -> None:
    output = show(terminal=False)
    assert "\x1b" not in output
    assert "━" not in output
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    kinds = [event["event"] for event in events]
    assert kinds.count("epoch") == 1
    assert "progress" in kinds
    epoch = next(event for event in events if event["event"] == "epoch")
    assert {"images_per_second", "wait_share", "validation/accuracy"} <= set(epoch)
    assert "Found 2 train" in output


def test_help_lists_commands_and_recipes_lists_recipes() -> None:
    helped = CliRunner().invoke(cli, ["--help"])
    assert helped.exit_code == 0
    for name in ("train", "recipes", "predict", "evaluate"):
        assert name in helped.output
    listed = CliRunner().invoke(cli, ["recipes"])
    assert [line.split()[0] for line in listed.output.splitlines()] == recipe_names()
    for name in recipe_names():
        assert CliRunner().invoke(cli, ["recipes", name]).output.startswith("#")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--nonsense"], "There is no option --nonsense. --help"),
        (["train", "--recip", "demo"], "Did you mean --recipe?"),
        (["train", "--epocs", "3"], "Did you mean --set train.epochs=...?"),
        (["predict", "runs/x"], "Missing argument"),
        (["nonsense"], "No such command"),
        (["evaluate", "runs/x"], "Missing option"),
    ],
)
def test_invalid_command_line_is_a_usage_error(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert words in done.output


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("", "TRAINER_SPEC is empty"),
        ("train: {newer: 1}", "rebuild the image"),
        ("train: [", "Received: 'train: ['"),
    ],
)
def test_invalid_spec_in_the_environment_is_rejected(sent: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        load_run_spec(None, None, (), {}, None, tmp_path, sent)


@pytest.mark.parametrize(
    ("place", "hours", "words"),
    [
        ("docker", "2", "--deadline-hours is not supported"),
        ("gke", "nan", "must be a finite number. Received: nan"),
    ],
)
def test_unsupported_deadline_is_rejected(place: str, hours: str, words: str) -> None:
    done = CliRunner().invoke(cli, ["submit", place, "--deadline-hours", hours, "--dry-run"])
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


def test_container_mounts_the_folder_of_an_import_file(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text("a.png,cat\n")
    words = ["submit", "docker", "--data", str(tmp_path / "pets.csv"), "--accelerator", "cpu", "--dry-run"]
    body = json.loads(CliRunner().invoke(cli, [*words, "--output", str(tmp_path / "runs")]).stdout)
    mounts = {each["Source"]: each["ReadOnly"] for each in body["HostConfig"]["Mounts"]}
    assert mounts == {str(tmp_path): True, str(tmp_path / "runs"): False}


@pytest.mark.parametrize(
    ("start_from", "mounted"),
    [
        ("other/one", "other/one"), ("other/latest", "other"), ("other/latest/", "other"), ("runs/one", None),
        ("other/champion", "other"),
        ("runs/latest", None), ("runs-2/one", "runs-2/one"), ("champion", None),
    ],
)  # fmt: skip
def test_container_mounts_the_run_of_start_from(start_from: str, mounted: str | None, tmp_path: Path) -> None:
    place = f"{tmp_path}/{start_from}" if "/" in start_from else start_from
    words = ["submit", "docker", "--recipe", "demo", "--accelerator", "cpu", "--dry-run",
             "--set", f"train.start_from={place}", "--output", f"{tmp_path}/runs"]  # fmt: skip
    body = json.loads(CliRunner().invoke(cli, words).stdout)
    mounts = {each["Source"]: each["ReadOnly"] for each in body["HostConfig"]["Mounts"]}
    read = {} if mounted is None else {f"{tmp_path}/{mounted}": True}
    assert mounts == {f"{tmp_path}/runs": False, **read}


def test_container_mounts_a_weights_file(tmp_path: Path) -> None:
    words = ["submit", "docker", "--recipe", "demo", "--accelerator", "cpu", "--dry-run",
             "--set", f"model={{family: pretrained, weights: {tmp_path}/w.h5}}",
             "--set", "data.image_size=32", "--output", f"{tmp_path}/runs"]  # fmt: skip
    body = json.loads(CliRunner().invoke(cli, words).stdout)
    mounts = {each["Source"]: each["ReadOnly"] for each in body["HostConfig"]["Mounts"]}
    assert mounts == {f"{tmp_path}/w.h5": True, f"{tmp_path}/runs": False}


def test_start_from_rejects_a_web_url(tmp_path: Path) -> None:
    settings = ("train.start_from=https://a.example/runs/one",)
    with pytest.raises(UsageError, match="must be a folder or gs://BUCKET/PREFIX"):
        load_run_spec(None, "demo", settings, {}, None, tmp_path)


def test_missing_tensorflow_is_reported_with_the_install_command(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; sys.argv[1:] = ['train']; "
    done = subprocess.run(
        [sys.executable, "-c", hidden + "from trainer.cli import main; main()"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "'.[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # no run was started


def test_old_tensorflow_is_rejected_before_a_run_starts(tmp_path: Path) -> None:
    (found := tmp_path / "site" / "tensorflow-2.19.1.dist-info").mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorflow\nVersion: 2.19.1\n")
    (work := tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "trainer.cli", "train"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(found.parent), *sys.path])},
        capture_output=True, text=True, check=False, cwd=work,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("Error: TensorFlow 2.20 or newer is required")
    assert list(work.iterdir()) == []


def test_cache_is_below_the_xdg_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trainer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "trainer"


def test_output_inside_the_image_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    photos = str(tmp_path / "photos")
    for inside in ("photos", "photos/runs", "photos/cats/../runs"):
        with pytest.raises(UsageError, match=r"such as \.\./runs"):
            require_apart(photos, str(tmp_path / inside))
    for apart in (str(tmp_path), str(tmp_path / "photos-runs"), "gs://bucket/photos"):
        require_apart(photos, apart)
    require_apart(str(tmp_path / "photos.zip"), str(tmp_path / "photos.zip" / "runs"))
    for output in ("gs://b/pets", "gs://b/pets/runs/"):
        with pytest.raises(UsageError, match="inside the folder of images"):
            require_apart("gs://b/pets/", output)
    for output in ("gs://b/pets-runs", "gs://b/", "gs://other/pets"):
        require_apart("gs://b/pets", output)


def test_model_beside_a_spec_is_not_an_unfinished_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "spec.yaml").write_text("recipe: demo\n")
    place = str(tmp_path / "model")
    assert local_model(place, tmp_path, SilentProgress()) == tmp_path / "model"
    (tmp_path / "starts.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="not finished"):
        local_model(place, tmp_path, SilentProgress())


def test_spec_of_a_moved_run_is_rejected_with_the_options_to_resume(tmp_path: Path) -> None:
    old, new = tmp_path / "runs", tmp_path / "my runs"
    (new / "one").mkdir(parents=True)
    path = str(new / "one" / "spec.yaml")
    spec = load_spec(overrides={"output": str(old), "run_name": "one", "data.source": "photos"})
    require_unmoved(path, spec)  # a copy of the file alone is an ordinary spec
    (new / "one" / "starts.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match=f"--output '{new}' --run-name one;"):
        require_unmoved(path, spec)
    require_unmoved(path, spec.model_copy(update={"output": f"{new}/../my runs/"}))
    with pytest.raises(UsageError, match="--run-name one"):
        require_unmoved(path, spec.model_copy(update={"output": "gs://bucket/runs"}))


def test_signal_before_the_command_installs_handlers_exits_with_143() -> None:
    code = (
        "import os, signal; from trainer.cli import app\n"
        "@app.cli.command()\ndef early(): os.kill(os.getpid(), signal.SIGINT)\n"
        "app.main(['early'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr == "Error: Stopped on request. Completed work is kept.\n"


def test_deleted_working_directory_is_reported_without_a_traceback(tmp_path: Path) -> None:
    command = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m trainer.cli train --data photos"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "The current folder does not exist any more" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_data_do_not_use_the_checksum_of_the_recipe(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.cli", "train", "--recipe", "cifar10", "--data", tmp_path / "none"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 65
    assert "checksum" not in done.stderr
    assert "no such" in done.stderr.lower()


def test_printed_specs_and_recipes_are_yaml(tmp_path: Path) -> None:
    listed = trainer("recipes", cache=tmp_path)
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert {"demo", "cats-vs-dogs", "cifar10", "cats-vs-dogs-augmented"} <= set(names)
    printed = trainer("recipes", "cifar10", cache=tmp_path)
    assert yaml.safe_load(printed.stdout)["train"]["epochs"] == 10
