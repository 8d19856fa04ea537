"""`trainer predict` and `trainer evaluate`: sources, top classes, threshold, CSV and the evaluation page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.bucket_server import BUCKET
from helpers.https_server import HttpsServer, Served
from helpers.published_model import CLASSES, export, publish_run
from PIL import Image

from trainer.cli.app import cli
from trainer.errors import DataError, TemporaryError, UsageError
from trainer.storage import open_store
from trainer.storage.folder import FolderStore


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a published run with an untrained model of two classes."""
    folder = tmp_path_factory.mktemp("published")
    return publish_run(FolderStore(folder / "runs"), "one", export(folder / "model")).uri


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, name in enumerate(CLASSES):
        (folder := tmp_path / "photos" / name).mkdir(parents=True)
        for shade in range(3):
            image = Image.new("RGB", (20, 20), (200 * number, 60 * shade, 10))
            image.save(folder / f"{shade}.png")
    return tmp_path / "photos"


def invoke(*arguments: str) -> Result:
    done = CliRunner().invoke(cli, list(arguments))
    assert done.exit_code == 0 or isinstance(done.exception, UsageError), done.output
    return done


def test_predict_accepts_https_and_gs_images_and_prints_their_addresses(
    run: str, photos: Path, server: HttpsServer, bucket_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (photos / "cats" / "0.png").read_bytes()
    server.files["/cat.png?key=secret"] = Served(data)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket_address)
    bucket = open_store(f"gs://{BUCKET}/predicted")
    bucket.write("a/cat.png", data)
    rows = invoke("predict", run, f"{server.url('/cat.png')}?key=secret", bucket.uri, "--json").output
    names = [json.loads(line)["path"] for line in rows.splitlines() if line.startswith("{")]
    assert names == [f"{server.url('/cat.png')}?...", f"{bucket.uri}/a/cat.png"]


def test_predict_continues_after_a_source_that_can_not_be_downloaded(
    run: str, photos: Path, server: HttpsServer
) -> None:
    picture = photos / "cats" / "0.png"
    server.files["/cat.png"] = Served(picture.read_bytes())
    good, missing = server.url("/cat.png"), server.url("/missing.png")
    done = CliRunner().invoke(cli, ["predict", run, missing, good, str(picture)])
    assert isinstance(done.exception, DataError)
    assert f"{missing}: " in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [good, str(picture)]
    assert "1 of 3 images" in str(done.exception)
    nobody = "https://127.0.0.1:9/cat.png"
    done = CliRunner().invoke(cli, ["predict", run, nobody, str(picture)])
    assert isinstance(done.exception, TemporaryError)
    assert "1 of 2 images" in str(done.exception)
    assert len(done.stdout.splitlines()) == 1
    alone = CliRunner().invoke(cli, ["predict", run, missing, missing])
    assert isinstance(alone.exception, DataError)
    assert "404" in str(alone.exception)


def test_predict_rejects_json_beside_csv(run: str, photos: Path) -> None:
    options = ("--json", "--csv", str(photos / "new.csv"))
    assert "cannot be combined" in str(invoke("predict", run, str(photos), *options).exception)
    assert not (photos / "new.csv").exists()


def test_predict_top_prints_the_most_probable_classes(run: str, photos: Path) -> None:
    picture = str(photos / "cats" / "0.png")
    (row,) = invoke("predict", run, picture, "--json").output.splitlines()
    probabilities = json.loads(row)["probabilities"]
    first, second = sorted(CLASSES, key=lambda name: -probabilities[name])
    line = invoke("predict", run, picture, "--top", "2").output
    assert f"  {first} {probabilities[first]:.3f}, {second} {probabilities[second]:.3f}" in line
    (row,) = invoke("predict", run, picture, "--top", "1", "--json").output.splitlines()
    assert json.loads(row)["top"] == {first: probabilities[first]}


def test_predict_threshold_leaves_uncertain_images_without_a_label(run: str, photos: Path) -> None:
    picture = str(photos / "cats" / "0.png")
    assert "no label" in invoke("predict", run, picture, "--threshold", "0.9999").output
    (row,) = invoke("predict", run, picture, "--threshold", "0.9999", "--json").output.splitlines()
    assert json.loads(row)["label"] is None
    assert "no label" not in invoke("predict", run, picture, "--threshold", "0.1").output


def test_predict_csv_writes_every_probability_or_the_top_classes(
    run: str, photos: Path, tmp_path: Path
) -> None:
    done = invoke("predict", run, str(photos), "--csv", str(tmp_path / "all.csv"))
    assert done.stdout == ""
    with open(tmp_path / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "predicted", "probability:cats", "probability:dogs"]
    assert [row["path"] for row in rows] == sorted(map(str, photos.rglob("*.png")))
    assert all(abs(sum(float(row[f"probability:{name}"]) for name in CLASSES) - 1) < 1e-4 for row in rows)
    invoke("predict", run, str(photos), "--top", "5", "--csv", str(tmp_path / "top.csv"))
    with open(tmp_path / "top.csv", newline="") as file:
        top = list(csv.DictReader(file))
    assert list(top[0]) == ["path", "label_1", "probability_1", "label_2", "probability_2"]
    assert [row["label_1"] for row in top] == [row["predicted"] for row in rows]
    assert isinstance(invoke("predict", run, str(photos), "--csv", "answers.txt").exception, UsageError)


def test_predict_explain_writes_a_named_png_for_every_image(run: str, photos: Path, tmp_path: Path) -> None:
    (photos / "cats" / "odd name\N{SNOWMAN}.png").write_bytes((photos / "cats" / "0.png").read_bytes())
    done = invoke("predict", run, str(photos), "--json", "--explain", str(tmp_path / "maps"))
    assert f"maps       {tmp_path / 'maps'}, 7 PNG files" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    files = sorted((tmp_path / "maps").iterdir())
    for number, (row, file) in enumerate(zip(rows, files, strict=True), start=1):
        image, label, probability = file.stem.partition("-")[2].rsplit("-", 2)
        assert file.name.startswith(f"{number:04}-")
        assert image == Path(row["path"]).stem.replace(" ", "_").replace("\N{SNOWMAN}", "_")
        assert (label, float(probability)) == (row["label"], round(row["probability"], 3))
        with Image.open(file) as picture:
            assert picture.size == (2 * 224 + 8, 224)
            assert picture.info["Title"] == f"{row['path']}: {label} {probability}"
    again = invoke("predict", run, str(photos), "--explain", str(tmp_path / "again"))
    assert again.exit_code == 0
    for file in files:
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_predict_explain_rejects_files_and_run_folders(run: str, photos: Path, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        done = invoke("predict", run, str(photos), "--explain", str(folder))
        assert isinstance(done.exception, UsageError), done.output
        assert done.stdout == ""
        return str(done.exception)

    (tmp_path / "file").write_text("text")
    assert "--explain names a file" in refused(tmp_path / "file")
    assert refused(tmp_path / "file" / "below")
    inside = tmp_path / "runs" / "one"
    inside.mkdir(parents=True)
    (inside / "starts.jsonl").write_text("{}\n")
    assert "inside a run" in refused(inside / "maps")
    assert not (inside / "maps").exists()


def test_predict_explain_continues_after_an_unreadable_image(run: str, photos: Path, tmp_path: Path) -> None:
    (photos / "cats" / "9.jpg").write_bytes(b"no image")
    arguments = ["predict", run, str(photos / "cats" / "9.jpg"), str(photos / "cats" / "0.png")]
    done = CliRunner().invoke(cli, [*arguments, "--explain", str(tmp_path / "maps")])
    assert isinstance(done.exception, DataError)
    assert "9.jpg: not an image" in done.stderr
    assert [file.name[:7] for file in (tmp_path / "maps").iterdir()] == ["0001-0-"]


def test_evaluate_html_shows_the_confusion_matrix_and_the_mistakes(
    run: str, photos: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = invoke("evaluate", run, "--data", str(photos), "--json", "--html", str(page))
    metrics = json.loads(done.stdout)
    text = page.read_text()
    mistakes = round(metrics["all/count"] * (1 - metrics["all/accuracy"]))
    assert mistakes > 0  # the untrained model predicts one class for nearly everything
    assert text.count('<img src="data:image/png;base64,') == mistakes
    assert "Confusion matrix" in text
    assert "<svg" in text
    assert f"of {mistakes} wrong predictions" in text
    assert "<script" not in text
