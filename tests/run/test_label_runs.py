"""End-to-end run on images with any number of labels, and the commands that use its results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.several_labels import FAST, SHAPES, label_sets, put_data, put_table
from helpers.trainer_process import trainer

from trainer.cli.predict import PredictOptions, evaluate_command, predict_command
from trainer.cli.release import challenge_champion
from trainer.compare.comparison import compare_runs
from trainer.compare.page import read_disagreements
from trainer.compare.runs import read_run
from trainer.errors import DataError, UsageError
from trainer.evaluate.metrics import compute_metrics
from trainer.evaluate.prediction_files import read_predictions
from trainer.export import load_model
from trainer.runs.publish import verify
from trainer.spec import read_spec
from trainer.storage.folder import FolderStore

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run on 160 drawn images, half of them labelled by a table of columns."""
    folder = tmp_path_factory.mktemp("labels")
    settings = [part for setting in FAST for part in ("--set", setting)]
    done = trainer(
        "train", "--data", put_data(folder / "data", 160), "--output", folder / "runs", "--run-name", "first",
        *settings, "--set", "train.devices=cpu:2", "--set", "augment.mixup=0.3", cache=folder / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note       " in done.stdout
    assert "validation mean average precision " in done.stdout
    return folder / "runs" / "first"


def test_run_is_complete_and_its_metrics_follow_from_its_predictions(run: Path) -> None:
    assert verify(FolderStore(run)) == []
    metrics = json.loads((run / "metrics.json").read_text())
    for predictions in read_predictions(run / "predictions.csv"):
        for name, value in compute_metrics(predictions).items():
            assert metrics[f"{predictions.split}/{name}"] == value
    assert metrics["validation/mean_average_precision"] > 0.9
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert all("validation/mean_average_precision" in row for row in rows)
    page = (run / "report.html").read_text()
    for text in (
        "a constant prediction has",
        "Average precision is the mean precision",
        "the split thresholds, which are not used for training",
        "Subset accuracy at a threshold of 0.5",
    ):
        assert text in page
    assert "Confusion" not in page


def test_saved_model_returns_the_labels_that_reach_their_thresholds(run: Path) -> None:
    about = json.loads((run / "model" / "assets" / "model.json").read_text())
    assert (about["labels"], about["format_version"], list(about["thresholds"])) == ("multi", 3, list(SHAPES))
    by_split = {part.split: part for part in read_predictions(run / "predictions.csv")}
    predictions = by_split["validation"]
    images = [(run.parents[1] / "data" / name).read_bytes() for name in predictions.names]
    answer = tf.saved_model.load(str(run / "model")).signatures["serving_default"](
        image_bytes=tf.constant(images)
    )
    np.testing.assert_allclose(answer["probabilities"], predictions.probabilities, atol=1e-5)
    is_returned = answer["labels"].numpy() != b""
    assert (is_returned == predictions.predicted).mean() > 0.99
    assert set(answer["labels"].numpy().ravel().tolist()) == {b"", *(name.encode() for name in SHAPES)}
    assert load_model(run).thresholds == tuple(about["thresholds"].values())


def test_predict_and_evaluate_print_all_labels(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run.parents[1] / "data"
    sets = label_sets(160)
    both = next(number for number, labels in enumerate(sets) if len(labels) == 2)
    predict_command(str(run), [str(data / f"{both:04d}.png")], tmp_path, PredictOptions(as_json=True))
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["labels"]) == set(sets[both])
    assert list(answer["probabilities"]) == list(SHAPES)
    predict_command(str(run), [str(data)], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("no label") for line in lines) >= 10
    rows = [
        ("path", *SHAPES),
        *((data / f"{n:04d}.png", *(int(s in sets[n]) for s in SHAPES)) for n in range(40)),
    ]
    table = put_table(tmp_path / "test.csv", rows)
    evaluate_command(str(run), str(table), tmp_path, as_json=True, settings=[])
    assert json.loads(capsys.readouterr().out)["all/mean_average_precision"] > 0.9
    evaluate_command(str(run), str(table), tmp_path, as_json=False, settings=[])
    assert "mean average precision 0.9" in capsys.readouterr().out.replace("1.000", "0.9")
    with pytest.raises(UsageError, match="are fixed by the model"):
        evaluate_command(str(run), str(table), tmp_path, as_json=True, settings=["data.labels=single"])
    put_table(tmp_path / "other.csv", [("path", "labels"), (data / "0001.png", "moon;disc")])
    with pytest.raises(DataError, match="classes that the model does not have"):
        evaluate_command(str(run), str(tmp_path / "other.csv"), tmp_path, as_json=True, settings=[])


def test_run_is_compared_and_released_by_mean_average_precision(run: Path, tmp_path: Path) -> None:
    compared = read_run(FolderStore(run), "first")
    pair = compare_runs(compared, compared)
    assert pair.measure == "mean_average_precision"
    assert read_disagreements(pair, tmp_path) == ([], "")
    output = FolderStore(run.parent)
    outcome = challenge_champion(output, "first", read_spec(run / "spec.yaml"), tmp_path, lambda: None)
    assert outcome.is_champion
    assert outcome.message == "first is the first champion"


def test_tune_maximizes_mean_average_precision(run: Path, tmp_path: Path) -> None:
    settings = [part for setting in FAST for part in ("--set", setting)]
    done = trainer(
        "tune", "--data", run.parents[1] / "data", "--output", tmp_path / "runs", "--run-name", "study",
        *settings, "--metric", "mean_average_precision", "--trials", "1", "--parameter", "train.epochs=1..2",
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "study" / "summary.json").read_text())
    assert summary["metric"] == "validation mean_average_precision"
    assert summary["direction"] == "maximize"
    metrics = json.loads((tmp_path / "runs" / "study" / "trial-000" / "metrics.json").read_text())
    assert summary["trials"][0]["value"] == metrics["validation/mean_average_precision"]
