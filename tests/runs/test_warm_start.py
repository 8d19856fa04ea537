"""Warm start: a run that starts with the weights of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.release_inputs import finished
from helpers.trainer_process import QUICK, error_line, trainer

from trainer.data.progress import SilentProgress
from trainer.distributed import ProcessGroup, ProcessInfo
from trainer.errors import DataError, UsageError
from trainer.evaluate.prediction_files import read_predictions
from trainer.release.challenge import promote
from trainer.runs import find_start, warm_start
from trainer.runs.champion import CHAMPION
from trainer.runs.publish import MANIFEST, MARKER
from trainer.spec import PretrainedSpec, load_spec
from trainer.storage.folder import FolderStore
from trainer.storage.local import write_json
from trainer.storage.store import Store
from trainer.training import HostSync

STILL = ["--set", "optimizer.learning_rate=1e-12", "--set", "train.epochs=1"]
"""Settings with which training leaves the weights unchanged."""


def test_start_from_selects_the_run(either_store: Store, tmp_path: Path) -> None:
    for name in ("latest", "champion", "scratch"):
        assert find_start(either_store, name) is None  # as in the first run of a schedule
    for name in ("one", "two"):
        finished(either_store, tmp_path / "local", name)
    promote(either_store, "one")
    meant = {"scratch": None, "latest": "two", "champion": "one", either_store.at("one"): "one",
             either_store.at("latest"): "two"}  # fmt: skip
    for start_from, name in meant.items():
        run = find_start(either_store, start_from)
        assert (run and run.uri) == (name and either_store.below(name).uri), start_from
    either_store.write("begun/spec.yaml", b"")
    with pytest.raises(UsageError, match="the folder of a finished run"):
        find_start(either_store, either_store.at("begun"))
    either_store.write(CHAMPION, b"gone\n")
    with pytest.raises(UsageError, match="names a run that does not exist"):
        find_start(either_store, "champion")


def require_began_with_first(output: Path, name: str) -> None:
    """Assert that run `name` predicts as run "first" and records it as its origin."""
    before, after = (read_predictions(output / each / "predictions.csv") for each in ("first", name))
    for one, other in zip(before, after, strict=True):
        assert np.abs(one.probabilities - other.probabilities).max() < 1e-6
    environment = json.loads((output / name / "environment.json").read_text())
    assert environment["started_from"] == f"{output}/first"


def damage(run: Path) -> None:
    """Make a finished run unfinished, with unreadable checkpoints."""
    for name in (MANIFEST, MARKER):
        (run / name).unlink()
    for path in (run / "checkpoints").glob("step-*.npz"):
        path.write_bytes(b"damaged")


@pytest.mark.engine
def test_run_starts_with_the_weights_of_another_run(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs"

    def words(name: str, *more: str) -> list[str | Path]:
        return ["train", "--data", photos, "--output", output, "--run-name", name, *QUICK, *more]

    first = trainer(*words("first", "--set", "train.start_from=latest"), cache=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "random weights: there is no finished run yet" in first.stdout
    more = ["--set", "train.start_from=latest", "--set", "train.ema_decay=0.9"]
    done = trainer(*words("average", *STILL, *more), cache=tmp_path)
    assert f"weights of {output}/first" in done.stdout, done.stderr
    require_began_with_first(output, "average")
    # Without a readable checkpoint the run starts over, again with the weights of `first`.
    damage(output / "average")
    done = trainer(*words("average", *STILL, *more), cache=tmp_path)
    assert f"weights of {output}/first" in done.stdout, done.stderr
    assert "no older checkpoint is left, so training starts from the beginning" in done.stdout
    require_began_with_first(output, "average")
    assert "Started from" in (output / "average" / "report.html").read_text()
    fresh = trainer(*words("fresh", *STILL), cache=tmp_path)
    assert "weights of" not in fresh.stdout
    before, after = (read_predictions(output / each / "predictions.csv") for each in ("first", "fresh"))
    assert np.abs(before[0].probabilities - after[0].probabilities).max() > 1e-3

    def refused(*more: str, code: int = 2) -> str:
        return error_line(trainer(*words("refused", *more), cache=tmp_path), code)

    assert "a model of another network" in refused(
        "--set", "train.start_from=latest", "--set", "model.filters=[4]"
    )
    damage(output / "average")
    (output / "first").rename(output / "gone")
    message = error_line(trainer(*words("average", *STILL, *more), cache=tmp_path), 2)
    assert "does not exist. Restart it with --fresh" in message
    assert list((output / "average" / "checkpoints").iterdir())
    (output / "gone").rename(output / "first")
    index = output / "first" / "model" / "variables" / "variables.index"
    for damaged in ("damaged", "x" * index.stat().st_size):
        index.write_text(damaged)
        message = refused("--set", f"train.start_from={output}/first", code=65)
        assert "differs from its published state" in message
        assert "model/variables/variables.index has " in message
    (output / CHAMPION).write_text("gone\n")
    assert "names a run that does not exist" in refused("--set", "train.start_from=champion")
    shutil.copytree(photos, tmp_path / "other")
    (tmp_path / "other" / "discs").rename(tmp_path / "other" / "rings")
    other = ["train", "--data", tmp_path / "other", "--output", output, "--run-name", "other", *QUICK]
    message = error_line(trainer(*other, "--set", "train.start_from=latest", cache=tmp_path), 2)
    assert "Received: discs, rings in only one of" in message


class Facts(SilentProgress):
    """Progress that records facts."""

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}

    def on_fact(self, name: str, text: str) -> None:
        self.facts[name] = text


RECORD = {"sha256": "cc", "origin": "gs://gone/w.h5", "licence": None}
GONE = PretrainedSpec(weights="/nowhere/w.h5")


def pretrained(monkeypatch: pytest.MonkeyPatch, run: Path, start: Store | None, is_readable: bool) -> Any:
    """Start a run whose weights file is missing; return its weights record and the reported facts."""
    monkeypatch.setattr(warm_start, "has_readable", lambda folder: is_readable)
    folder: Any = SimpleNamespace(path=run, checkpoints=run / "checkpoints")
    learner: Any = None  # no weights are loaded into it
    agreement = HostSync(ProcessGroup(ProcessInfo()))
    return warm_start._load_pretrained(
        GONE, learner, agreement, run, screen := Facts(), folder, start, bool(start)
    ), (screen.facts)


def test_resumed_run_reads_no_weights_file_and_keeps_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "environment.json", {"weights": RECORD})
    assert pretrained(monkeypatch, tmp_path, None, True) == (RECORD, {})
    for damaged in ("", "[]", '{"weights": 3}', '{"weights": {"sha256": null}}', "{}"):
        (tmp_path / "environment.json").write_text(damaged)
        assert pretrained(monkeypatch, tmp_path, None, True) == (None, {})
    with pytest.raises(DataError, match="no such file of weights"):  # it starts over and needs the weights
        pretrained(monkeypatch, tmp_path, None, False)


def test_run_started_from_another_run_reads_no_weights_file_and_records_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = FolderStore(tmp_path / "first")
    for environment, record in (({"weights": RECORD}, RECORD), ({}, None)):
        start.write("environment.json", json.dumps(environment).encode())
        assert pretrained(monkeypatch, tmp_path / "second", start, False) == (record, {})


def test_unchanged_run_is_detected_by_its_initial_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = FolderStore(tmp_path / "runs")
    finished(output, tmp_path / "local", "one")
    output.write("one/environment.json", json.dumps({"weights": RECORD}).encode())
    monkeypatch.setattr("trainer.runs.champion.require_as_published", lambda run, digests: None)
    folder: Any = SimpleNamespace(output=output)
    settings = [f"model={{family: pretrained, weights: {GONE.weights}}}", "data.image_size=32"]
    spec = load_spec(settings=[*settings, f"train.start_from={output.at('one')}"])
    assert warm_start.new_weights_sha256(spec, folder, tmp_path, Facts()) == "cc"
    with pytest.raises(DataError, match="no such file of weights"):
        warm_start.new_weights_sha256(load_spec(settings=settings), folder, tmp_path, Facts())
    assert warm_start.new_weights_sha256(load_spec(), folder, tmp_path, Facts()) == ""
