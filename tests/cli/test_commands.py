"""Help, examples, positional data, settings, table and deletion of runs, log formats, and machine checks."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from helpers.command_lines import parse
from helpers.release_inputs import finished

from trainer.cli.app import cli
from trainer.cli.config import load_run_spec
from trainer.cli.console import Console
from trainer.cli.job import Job, run_chief
from trainer.cli.options import SpecCommand
from trainer.distributed import ProcessGroup, ProcessInfo
from trainer.errors import DataError, DivergedError, TemporaryError, TrainerError, UsageError
from trainer.release.challenge import promote
from trainer.report.verdict import Verdict
from trainer.runs import RunFolder, lease_of
from trainer.runs.publish import latest_run
from trainer.shutdown import GracefulShutdown
from trainer.spec.problems import known_keys
from trainer.storage.folder import FolderStore
from trainer.storage.lease import take_lease


def invoke(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=text)


def error_of(done: Result, kind: type[Exception] = UsageError) -> str:
    assert isinstance(done.exception, kind), done.output
    return str(done.exception)


def commands(group: click.Group, path: str = "trainer") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


COMMANDS = dict(commands(cli))


def test_help_lists_all_commands_in_groups_and_whole_summaries_in_80_columns() -> None:
    text = invoke("--help").output
    titles = ["Train and evaluate:", "Compare and release:", "Cloud jobs:", "Tools:"]
    assert [line for line in text.splitlines() if line in titles] == titles
    assert re.search(r"^Train and evaluate:\n(  .*\n)*  train .*\n(  .*\n)*\nCompare", text, re.MULTILINE)
    listed = re.findall(r"^  ([a-z]+) +[A-Z]", text[text.index(titles[0]) :], re.MULTILINE)
    assert sorted(listed) == sorted(cli.commands)
    assert "..." not in text[text.index(titles[0]) :]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("path", ["trainer", *COMMANDS])
def test_help_ends_with_two_examples_that_are_valid_commands(path: str) -> None:
    words = path.split()[1:]
    text = invoke(*words, "--help").output
    examples = re.findall(r"^    (trainer .*)$", text[text.index("Examples:") :], re.MULTILINE)
    assert len(examples) == 2
    assert max(map(len, text.splitlines())) <= 80
    for example in examples:
        assert example.startswith(path)
        parse([word.strip("'") for word in example.split()[1:]])


def test_spec_prints_type_default_and_meaning_of_a_setting() -> None:
    text = invoke("spec", "train.epochs").output
    assert text.splitlines()[0] == "train.epochs"
    assert "integer (at least 1); default 20" in text
    assert "Passes over the training images." in text
    everything = invoke("spec").output.splitlines()
    assert {line for line in everything if not line.startswith(" ")} >= {"data.source", "optimizer.name"}
    assert max(map(len, everything)) <= 80
    rows = [json.loads(line) for line in invoke("spec", "optimizer", "--json").output.splitlines()]
    assert {"key", "type", "default", "meaning"} == set(rows[0])
    assert {row["key"] for row in rows} <= set(known_keys())
    assert "Did you mean train.epochs?" in error_of(invoke("spec", "train.epoch"))


def parsed(*arguments: str) -> tuple[str | None, str | None]:
    """Return the spec file and the data of a `trainer train` command line."""
    command = cli.commands["train"]
    assert isinstance(command, SpecCommand)
    params = command.make_context("train", list(arguments)).params
    return params["spec_path"], params["data"]


def test_a_folder_an_archive_or_a_url_in_place_of_the_spec_is_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for name in ("my.zip", "pets.csv", "my.yaml", "plain"):
        (tmp_path / name).write_text("")
    for data in (
        "photos",
        "my.zip",
        "pets.csv",
        "https://a.example/p.zip?k=v",
        "gs://b/p",
        "embedded:digits",
    ):
        assert parsed(data) == (None, data)
    for spec in ("my.yaml", "missing.yml", "plain", "gs://b/my.yaml"):
        assert parsed(spec, "--data", "photos") == (spec, "photos")
    with pytest.raises(UsageError, match=r"set twice.*Received: my\.zip and --data photos"):
        parsed("my.zip", "--data", "photos")


def test_an_argument_that_is_neither_spec_nor_data_has_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Did you mean --recipe cifar10?" in error_of(invoke("train", "cifar10"))
    assert "Check the path" in error_of(invoke("train", "my_fotos"))
    (run := tmp_path / "runs" / "one").mkdir(parents=True)
    for name in ("spec.yaml", "starts.jsonl"):
        (run / name).write_text("")
    assert "trainer train runs/one/spec.yaml" in error_of(invoke("train", "runs/one"))


def test_a_run_without_data_gets_neither_a_name_nor_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("train", "--recipe", "cifar10", "--data", "nowhere")
    assert "nowhere" in error_of(done, DataError)
    assert "run  " not in done.output
    assert list(tmp_path.iterdir()) == []


class FailingJob(Job):
    """Job whose training raises `error`."""

    error: TrainerError

    def run(self, folder: RunFolder, screen: object) -> Verdict | None:
        """Raise the error."""
        raise self.error


def fail(folder: Path, name: str, error: TrainerError) -> None:
    """Start the run `name`, whose training raises `error`."""
    spec = load_run_spec(None, "demo", (), {"output": str(folder), "run_name": name}, None, folder)
    group = ProcessGroup(ProcessInfo())
    job = FailingJob(spec, folder / "cache", Console(9.0), GracefulShutdown(), group)
    object.__setattr__(job, "error", error)
    with pytest.raises(type(error)):
        run_chief(job, fresh=False)


def test_a_failed_run_leaves_no_folder_or_one_that_states_why(tmp_path: Path) -> None:
    fail(tmp_path, "one", DataError("The images are damaged."))
    assert not (tmp_path / "one").exists()
    fail(tmp_path, "two", DivergedError("The loss is NaN.", "Lower the learning rate."))
    reason = tmp_path / "two" / "error.txt"
    assert reason.read_text().endswith("exit code 70\nThe loss is NaN. Lower the learning rate.\n")
    fail(tmp_path, "two", TemporaryError("The bucket does not respond: https://host/x?key=secret"))
    assert "exit code 75" in reason.read_text()
    assert "secret" not in reason.read_text()


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    """Return `runs` in the current folder, with the finished runs one and two, and three unfinished."""
    monkeypatch.chdir(tmp_path)
    store = FolderStore(tmp_path / "runs")
    for name, accuracy in (("one", 0.75), ("two", 0.9)):
        store.write(f"{name}/spec.yaml", b"recipe: demo\n")
        store.write(f"{name}/history.jsonl", b"{}\n{}\n{}\n")
        store.write(f"{name}/timings.json", b'{"training_seconds": 75.2}')
        metrics = {"train/accuracy": 0.95, "validation/accuracy": accuracy}
        finished(store, tmp_path / "local", name, json.dumps(metrics))
    store.write("three/spec.yaml", b"recipe: cifar10\n")
    store.write("three/history.jsonl", b"{}\n")
    store.write("three/starts.jsonl", b"{}\n")
    return store


def test_runs_lists_the_folder_runs_with_recipe_epochs_accuracy_gap_and_time(output: FolderStore) -> None:
    lines = [re.split(r"  +", line) for line in invoke("runs").output.splitlines()]
    assert lines[0] == [
        "run", "state", "recipe", "epochs", "accuracy", "gap", "time", "published", "data",
    ]  # fmt: skip
    rows = {line[0]: line[1:] for line in lines[1:]}
    assert rows["two"][:6] == ["latest", "demo", "3", "0.900", "0.050", "1 min 15 s"]
    assert rows["one"][:6] == ["finished", "demo", "3", "0.750", "0.200", "1 min 15 s"]
    assert rows["three"][:6] == ["unfinished", "cifar10", "1", "-", "-", "-"]
    (row,) = [json.loads(line) for line in invoke("runs", "--json").output.splitlines() if '"one"' in line]
    assert (row["recipe"], row["epochs"], row["gap"], row["seconds"]) == ("demo", 3, pytest.approx(0.2), 75.2)


def test_an_output_that_does_not_exist_is_an_error_and_an_empty_one_is_not(output: FolderStore) -> None:
    assert "There is no such output folder" in error_of(invoke("runs", "nowhere"))
    (output.root.parent / "empty").mkdir()
    assert invoke("runs", "empty").output == "no runs\n"


def test_runs_delete_removes_a_run_after_a_confirmation(output: FolderStore) -> None:
    assert "Nothing was deleted" in error_of(invoke("runs", "--delete", "two", text="n\n"))
    assert "--yes requires --delete" in error_of(invoke("runs", "--yes"))
    assert "cannot be combined" in error_of(invoke("runs", "--delete", "two", "--json"))
    assert "Give the folder above it" in error_of(invoke("runs", "runs/two"))
    assert latest_run(output) == "two"
    done = invoke("runs", "--delete", "two", text="y\n")
    assert done.exit_code == 0, done.output
    assert not (output.root / "two").exists()
    assert latest_run(output) == "one"
    assert invoke("runs", "--delete", "three", "--yes").exit_code == 0
    assert invoke("runs", "--delete", "one", "--yes").exit_code == 0
    assert latest_run(output) is None
    assert invoke("runs").output == "no runs\n"
    for name in ("one", "../runs"):
        error_of(invoke("runs", "--delete", name, "--yes"))


def test_runs_delete_refuses_links_and_folders_that_are_no_runs(output: FolderStore) -> None:
    (output.root / "link").symlink_to(output.root / "two")
    assert "symbolic link" in error_of(invoke("runs", "--delete", "link", "--yes"))
    output.write("project/spec.yaml", b"recipe: demo\n")
    output.write("project/photos/one.jpg", b"")
    assert "no such run" in error_of(invoke("runs", "--delete", "project", "--yes"))
    output.write("one/thesis.doc", b"")
    output.write("one/runs/other/spec.yaml", b"")
    assert "do not belong to a run" in error_of(invoke("runs", "--delete", "one", "--yes"))
    output.write("three/.git/config", b"")
    assert ".git in " in error_of(invoke("runs", "--delete", "three", "--yes"))
    for name in ("two/metrics.json", "project/photos/one.jpg", "one/thesis.doc", "one/metrics.json"):
        assert output.find(name) is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs", ""], "The name of the output is empty"),
        (["predict", "runs/one", ""], "The name of an image is empty"),
        (["predict", "runs/one", "a.jpg", "--csv", "folder.csv"], "--csv names a folder"),
        (["train", "empty.yaml"], "The spec is empty"),
    ],
)
def test_empty_names_and_wrong_targets_are_rejected_first(
    output: FolderStore, words: list[str], message: str
) -> None:
    Path("folder.csv").mkdir()
    Path("empty.yaml").touch()
    assert message in error_of(invoke(*words))


def test_runs_delete_refuses_the_champion_and_a_run_in_use(
    output: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(output, "two")
    assert "The champion cannot be deleted" in error_of(invoke("runs", "--delete", "two", "--yes"))
    monkeypatch.setattr("trainer.storage.lease.EXPIRY_SECONDS", 1.0)
    lease = take_lease(output, lease_of("one"), print)
    try:
        error_of(invoke("runs", "--delete", "one", "--yes"), TemporaryError)
    finally:
        lease.release()
    assert (output.root / "one" / "metrics.json").exists()
    assert (output.root / "two" / "metrics.json").exists()


class Report:
    """Progress of one call, as the training loop reports it."""

    def __init__(self) -> None:
        self.epoch, self.epochs, self.step, self.total_steps = 1, 2, 3, 90
        self.loss, self.accuracy, self.images_per_second, self.wait_share = 0.5, 0.75, 141.2, 0.0


def logged(console: Console) -> list[str]:
    console.rich.file = io.StringIO()
    row = {"epoch": 1, "train/loss": 0.5, "train/accuracy": 0.75, "images_per_second": 1.0, "wait_share": 0.0}
    console.on_call(Report())
    console.on_epoch(row, 2)
    task = console.start("Decoding", 3, "images")
    task.advance(2)
    console.on_phase("Evaluating")
    return console.rich.file.getvalue().splitlines()


def test_a_text_log_has_plain_lines_and_a_json_log_has_events() -> None:
    assert logged(Console(0.0, log_format="text")) == [
        "progress   epoch 1/2  step 3/90  loss 0.500  acc 0.750  141 img/s  wait 0%",
        "epoch 1/2  loss 0.500  acc 0.750  1 img/s  wait 0.0%",
        "work       Decoding: 2 of 3 images",
        "phase      Evaluating",
    ]
    for console in (Console(0.0), Console(0.0, log_format="json")):
        events = [json.loads(line)["event"] for line in logged(console)]
        assert events == ["progress", "epoch", "work", "phase"]
    assert "log_format" in cli.commands["train"].make_context("train", ["--log", "text"]).params


def test_doctor_without_a_platform_checks_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = invoke("doctor", "--output", str(tmp_path / "runs"))
    assert done.exit_code == 0, done.output
    for name in ("Python", "memory", "cache", "output", "pretrained weights", "TensorFlow"):
        assert re.search(rf"^ok +{name}: ", done.output, re.MULTILINE), name
    assert done.output.splitlines()[-1] == "ready      to train on this machine"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    done = invoke("doctor", "--output", str(tmp_path / "file" / "runs"))
    assert "This machine is not ready" in error_of(done)
    assert re.search(r"^wrong +output: ", done.output, re.MULTILINE)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_options(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"_TRAINER_COMPLETE": f"{shell}_source"}
    done = CliRunner().invoke(cli, [], env=environment, prog_name="trainer")
    assert done.exit_code == 0
    assert "_TRAINER_COMPLETE" in done.output
    complete = {"COMP_WORDS": "trainer ev", "COMP_CWORD": "1" if shell != "fish" else "ev"}
    environment = {"_TRAINER_COMPLETE": f"{shell}_complete", **complete}
    assert "evaluate" in CliRunner().invoke(cli, [], env=environment, prog_name="trainer").output
