"""End-to-end runs in real processes: files, output and exit codes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.trainer_process import QUICK, command, refused, trainer
from PIL import Image

from trainer.cli.predict import predict_command
from trainer.errors import DataError, UsageError
from trainer.evaluate.metrics import compute_metrics
from trainer.evaluate.prediction_files import read_predictions
from trainer.runs.publish import is_finished, publish, verify
from trainer.storage.folder import FolderStore

Finished = tuple[Path, subprocess.CompletedProcess[str]]

RUN_FILES = {
    "spec.yaml", "environment.json", "dataset.json", "rejected.csv", "starts.jsonl", "history.jsonl",
    "timings.json", "events", "checkpoints", "predictions.csv", "metrics.json", "report.html", "plots",
    "images.json", "model", "MANIFEST.json", "_SUCCESS",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a finished run on the photos, one of which is damaged, and its process."""
    folder = tmp_path_factory.mktemp("runs")
    data = shutil.copytree(photos, folder / "photos")
    (data / "discs" / "broken.jpg").write_text("not a picture")
    done = trainer(
        "train", "--data", os.path.relpath(data), "--output", folder, "--run-name", "first", *QUICK, "--set",
        "data.max_rejected=0.2", cache=folder / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "first", done


def test_run_writes_all_its_files(finished: Finished) -> None:
    run, done = finished
    # No messages of libraries, such as TensorFlow's about oneDNN.
    assert done.stderr == ""
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert is_finished(FolderStore(run))
    assert verify(FolderStore(run)) == []
    assert (run.parent / "latest").read_text().strip() == "first"
    assert "Found " in done.stdout
    assert f"in 3 classes:\n{'':13}discs, squares, stripes\n" in done.stdout
    assert str(run / "report.html") in done.stdout
    assert "golden predictions agree" in done.stdout
    assert "\x1b" not in done.stdout
    rows = list(csv.reader((run / "rejected.csv").read_text().splitlines()))
    assert rows[0] == ["path", "reason"]
    assert "broken.jpg" in rows[1][0]
    assert "not an image" in rows[1][1]
    assert len((run / "history.jsonl").read_text().splitlines()) == 2
    environment = json.loads((run / "environment.json").read_text())
    assert {"command", "git_commit", "packages", "host", "devices", "seed"} <= set(environment)
    # The relative path was made absolute, as it depends on the working directory.
    assert f"source: {run.parent / 'photos'}\n" in (run / "spec.yaml").read_text()


def test_metrics_can_be_recomputed_from_the_predictions(finished: Finished) -> None:
    run, _ = finished
    metrics = json.loads((run / "metrics.json").read_text())
    for predictions in read_predictions(run / "predictions.csv"):
        for name, value in compute_metrics(predictions).items():
            assert metrics[f"{predictions.split}/{name}"] == pytest.approx(value, abs=1e-12)


def test_command_of_a_finished_run_changes_nothing_and_succeeds(finished: Finished) -> None:
    run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = trainer("train", run / "spec.yaml", cache=run.parent / "cache")
    assert done.returncode == 0
    assert "finished" in done.stdout
    assert "latest " not in done.stdout
    later = run.with_name("later")
    later.mkdir()
    (later / "metrics.json").write_text("{}")
    publish(FolderStore(run.parent), later.name, later)
    done = trainer("train", run / "spec.yaml", cache=run.parent / "cache")
    assert "latest     later, published after this run" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


@pytest.mark.engine
def test_model_below_the_required_accuracy_is_kept_and_exits_with_4(photos: Path, tmp_path: Path) -> None:
    arguments = [
        "train", "--data", photos, "--output", tmp_path, "--run-name", "poor", *QUICK,
        "--set", "optimizer.learning_rate=1e-9",
    ]  # fmt: skip
    claim = "--assert-accuracy-at-least"
    done = trainer(*arguments, claim, "0.99", cache=tmp_path / "cache")
    refused(done, 4, "less accurate than required", "at least 0.99 required")
    assert verify(FolderStore(tmp_path / "poor")) == []
    assert (tmp_path / "latest").read_text().strip() == "poor"
    assert str(tmp_path / "poor" / "report.html") in done.stdout
    refused(
        trainer(*arguments, claim, "0.99", cache=tmp_path / "cache"), 4
    )  # finished, but not more accurate
    assert trainer(*arguments, claim, "0", cache=tmp_path / "cache").returncode == 0
    refused(trainer(*arguments, claim, "2", cache=tmp_path / "cache"), 2, "0<=x<=1")


def test_run_name_of_another_spec_is_rejected_with_the_changed_keys(finished: Finished) -> None:
    run, _ = finished
    done = trainer("train", run / "spec.yaml", "--set", "train.epochs=9", cache=run.parent / "cache")
    refused(done, 2, "train.epochs: 2 -> 9", "--run-name")


def test_predict_accepts_files_and_folders_and_prints_json(
    finished: Finished, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    pictures = sorted(photos.rglob("*.png"))[:3]
    # The same image in a format that only the package decodes, beside a file that is not an image.
    (mixed := tmp_path / "mixed").mkdir()
    Image.open(pictures[0]).save(mixed / "a.tiff")
    (mixed / "notes.txt").write_text("none")
    (mixed / "b.png").symlink_to(pictures[0])
    done = trainer("predict", run, *pictures, mixed, "--json", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == [*map(str, pictures), str(mixed / "a.tiff"), str(mixed / "b.png")]
    assert rows[3]["probabilities"] == pytest.approx(rows[0]["probabilities"], abs=1e-6)
    assert "1 TIFF file was converted before decoding; the exported model cannot" in done.stderr
    assert f"left out: 1 file, not an image type: .txt, such as {mixed / 'notes.txt'}" in done.stderr
    assert "symbolic link to outside of the source: b.png -> " in done.stderr
    for row in rows:
        assert row["probability"] == max(row["probabilities"].values())
        assert sum(row["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    predict_command(str(run / "model"), [str(photos)], tmp_path)
    table = capsys.readouterr().out.splitlines()
    assert len(table) == len([path for path in photos.rglob("*") if path.is_file()])


def test_predict_reports_unusable_files_and_classifies_the_others(finished: Finished, tmp_path: Path) -> None:
    run, _ = finished
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("hello")
    (tmp_path / "c.jpg").write_bytes(b"")
    # Hidden files are ignored, as in training.
    (tmp_path / "._a.jpg").write_bytes(b"litter")
    os.mkfifo(tmp_path / "pipe")
    done = trainer("predict", run, tmp_path, tmp_path / "pipe", cache=tmp_path / "cache")
    refused(done, 65, "b.jpg: not an image", "c.jpg: empty file", "pipe: not a regular file", "3 of 4")
    assert len(done.stdout.splitlines()) == 1
    assert "a.png" in done.stdout


def test_predict_rejects_damaged_models_and_other_folders(finished: Finished, tmp_path: Path) -> None:
    run, _ = finished
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(picture)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", run / "model", copy], check=True)
    weights = next((copy / "variables").glob("*.data-*"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        predict_command(str(copy), [str(picture)], tmp_path)
    with pytest.raises(UsageError, match="neither a run nor a model"):
        predict_command(str(tmp_path), [str(picture)], tmp_path)


def test_control_characters_in_class_names_are_escaped(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished[0] / "model", tmp_path / "copy")
    description = copy / "assets" / "model.json"
    about = json.loads(description.read_text())
    about["class_names"] = [f"{name}\a\n" for name in about["class_names"]]
    description.write_text(json.dumps(about))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    predict_command(str(copy), [str(tmp_path / "a.png")], tmp_path)
    (line,) = capsys.readouterr().out.splitlines()
    assert r"\x07\n" in line


@pytest.mark.engine
def test_train_without_data_runs_the_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        command("train", "--set", "train.epochs=1"),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Found 1438 train and 359 validation images in 10 classes" in done.stdout
    run = tmp_path / "runs" / (tmp_path / "runs" / "latest").read_text().strip()
    assert run.name.startswith("demo-")
    assert json.loads((run / "metrics.json").read_text())["validation/accuracy"] > 0.5
    refused(trainer("predict", run / "model", tmp_path / "none.jpg", cache=tmp_path), 2, "none.jpg")


@pytest.mark.engine
def test_predict_rejects_an_unfinished_run(finished: Finished, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished[0], copy], check=True)
    (copy / "_SUCCESS").unlink()
    for model in (copy, copy / "model"):
        done = trainer("predict", model, photos, cache=tmp_path)
        refused(done, 2, "not finished", f"trainer train {copy}/spec.yaml")


def test_published_run_that_was_modified_is_not_changed(finished: Finished, tmp_path: Path) -> None:
    run, _ = finished
    copy = tmp_path / "first"
    subprocess.run(["cp", "-r", run, copy], check=True)
    with open(copy / "MANIFEST.json", "a") as file:
        file.write(" ")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    done = trainer("train", run / "spec.yaml", "--output", tmp_path, cache=run.parent / "cache")
    refused(done, 2, "was changed after publication")
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")}


@pytest.mark.engine
def test_evaluate_measures_a_run_on_other_data(finished: Finished, photos: Path, tmp_path: Path) -> None:
    run, _ = finished
    data = shutil.copytree(photos, tmp_path / "photos")
    (data / "discs" / "broken.jpg").write_text("not a picture")
    refused(trainer("evaluate", run, "--data", data, cache=tmp_path), 65, "broken.jpg", "data.max_rejected")
    done = trainer(
        "evaluate", run, "--data", data, "--json", "--set", "data.max_rejected=0.2", cache=tmp_path
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["all/count"] == metrics["all/trained_checked"] == len(list(photos.rglob("*.png")))
    assert "broken.jpg" in done.stderr
    shutil.rmtree(data / "discs")
    output = trainer("evaluate", run, "--data", data, cache=tmp_path).stdout
    counts = json.loads((run / "dataset.json").read_text())["splits"]["train"]["classes"]
    trained = counts["squares"] + counts["stripes"]
    assert f"  note       {trained} of 16 images are training images, so this accuracy is too high" in output
    assert "  discs                -  no image of this class in these data" in output
    assert "nan" not in output
    for setting in (
        "data.image_size=64",
        "data.crop_fraction=0.5",
        "train.epochs=3",
    ):  # settings of the model, not of the data
        wrong = trainer("evaluate", run, "--data", photos, "--set", setting, cache=tmp_path)
        refused(wrong, 2, setting, "data.layout")
    refused(trainer("evaluate", run, "--data", "", cache=tmp_path), 2, "data.source")
