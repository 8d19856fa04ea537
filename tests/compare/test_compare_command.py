"""`trainer compare` of finished runs: terminal, JSON and HTML output, and errors."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.bucket_server import BUCKET
from helpers.trainer_process import QUICK, error_line, refused, trainer
from PIL import Image, ImageOps

from trainer.cli.compare import read_runs
from trainer.errors import UsageError
from trainer.storage import open_store
from trainer.storage.local import hash_file

NO_METRICS = (
    "[]", "{", '{"validation/accuracy": "x"}', '{"train/accuracy": 1}', '{"validation/accuracy": 0.7}',
    '{"validation/accuracy": 7, "validation/count": 10}',
    '{"validation/accuracy": NaN, "validation/count": 9}',
    '{"validation/accuracy": 0.5, "validation/count": Infinity}', '{"validation/count": 1%s}' % ("0" * 400),
    '{"validation/accuracy": 71.2, "validation/count": 1000}', "[" * 100_000,
    '{"validation/accuracy": 0.7, "validation/correct": 100, "validation/count": 1000}',
    '{"validation/accuracy": 0.5, "validation/count": 1e12}',
)  # fmt: skip
OTHERS_FILES = (
    ("metrics.json", '{"validation/accuracy": 0.5}'), ("metrics.json", '{"validation/accuracy": "x"}'),
    ("history.jsonl", '{"epoch": 1'), ("timings.json", "{}"),
    ("timings.json", '{"epochs": [{"seconds": "x"}]}'),
    ("dataset.json", "[]"), ("environment.json", '{"packages": null}'),
    ("predictions.csv", ""),
)  # fmt: skip
"""Files that another program may have written into a run."""


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one spec with different seeds, then two of one epoch: with fewer and with other images."""
    folder = tmp_path_factory.mktemp("runs")
    less, other = (shutil.copytree(photos, folder / name) for name in ("less", "other"))
    # Removing the last image of its class in hash order keeps the held-out images the same.
    max((less / "stripes").iterdir(), key=lambda path: hash_file(path)["sha256"]).unlink()
    for path in other.rglob("*.png"):
        ImageOps.mirror(Image.open(path)).save(path)
    for name, data, more in (
        ("one", photos, ["--set", "seed=1"]),
        ("two", photos, ["--set", "seed=2"]),
        ("less", less, ["--set", "train.epochs=1"]),
        ("other", other, ["--set", "train.epochs=1"]),
    ):
        done = trainer(
            "train", "--data", data, "--output", folder / "runs", "--run-name", name, *QUICK, *more,
            cache=folder / "cache",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.mark.engine
def test_compare_prints_runs_to_the_terminal(runs: Path, tmp_path: Path) -> None:
    done = trainer("compare", runs / "one", runs / "two", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["one", "two"]
    assert all(len(line) < 80 for line in lines)
    assert "  seed  " in done.stdout
    assert "different spec" in done.stdout
    assert any(line.split() == ["seed", "1", "2"] for line in lines)
    assert "different data" not in done.stdout
    done = trainer("compare", runs / "one", runs / "one", cache=tmp_path)
    assert "No difference: both are right and wrong on the same" in done.stdout
    # As in weekly retraining: other training images, the same held-out images.
    done = trainer("compare", runs / "one", runs / "less", cache=tmp_path)
    assert "exact McNemar" in done.stdout or "right and wrong on the same" in done.stdout
    assert "train/stripes" in done.stdout
    done = trainer("compare", runs / "one", runs / "other", cache=tmp_path)
    assert "unpaired, because the data differ" in " ".join(done.stdout.split())
    done = trainer("compare", runs / "one", runs / "two", runs / "less", cache=tmp_path)
    assert "standard deviation" not in done.stdout
    assert "one and less" in done.stdout
    done = trainer("compare", runs / "one", runs / "two", runs / "one", cache=tmp_path)
    assert "standard deviation" in done.stdout


@pytest.mark.engine
def test_compare_json_contains_everything(runs: Path, tmp_path: Path) -> None:
    done = trainer("compare", runs / "one", runs / "latest", "--json", cache=tmp_path)
    values = json.loads(done.stdout)
    assert [run["name"] for run in values["runs"]] == ["one", "latest"]
    metrics = json.loads((runs / "one" / "metrics.json").read_text())
    assert values["runs"][0]["accuracy"] == metrics["validation/accuracy"]
    assert {"verdict", "is_paired", "accuracy", "differences"} <= set(values["comparisons"][0])


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, Any]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.mark.engine
def test_page_shows_curves_and_disagreements(runs: Path, tmp_path: Path) -> None:
    done = trainer("compare", runs / "one", runs / "two", "--html", tmp_path / "page.html", cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "page.html").read_text()
    page = _Page()
    page.feed(text)
    values = json.loads(trainer("compare", runs / "one", runs / "two", "--json", cache=tmp_path).stdout)
    pair = values["comparisons"][0]
    assert len(page.images) == pair["only_first_right"] + pair["only_second_right"] > 0
    assert all(link.startswith("data:image/") for link in page.links)  # works offline
    assert text.count("<svg") == 2
    assert "<script" not in text
    for path, why in (
        (runs / "one" / "metrics.json", "--html requires a file name"),
        (runs / "latest", "--html requires a file name"),
        (runs / "one" / "report.html", "The page is inside a run"),
        (runs / "one" / "model" / "page.html", "The page is inside a run"),
    ):
        before = path.read_bytes() if path.exists() else None
        done = trainer("compare", runs / "one", runs / "two", "--html", path, cache=tmp_path)
        assert why in error_line(done, 2)
        assert (path.read_bytes() if path.exists() else None) == before
    refused(trainer("compare", runs / "one", runs / "two", "--html", "/proc/x.html", cache=tmp_path), 2)


@pytest.mark.engine
def test_missing_images_are_not_an_error(runs: Path, tmp_path: Path) -> None:
    copies = [shutil.copytree(runs / name, tmp_path / name) for name in ("one", "two")]
    for copy in copies:
        publish_again(copy, "spec.yaml", lambda text: text.replace("photos", "nowhere"))
    done = trainer("compare", *copies, "--html", tmp_path / "page.html", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The images cannot be shown" in (tmp_path / "page.html").read_text()


@pytest.mark.engine
def test_changed_images_are_not_shown(runs: Path, photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    copies = [shutil.copytree(runs / name, tmp_path / name) for name in ("one", "two")]
    for copy in copies:
        publish_again(copy, "spec.yaml", lambda text: text.replace(str(photos), str(data)))
    words = ["compare", *copies, "--html", tmp_path / "page.html"]
    for is_changed in (False, True):
        if is_changed:
            for path in data.rglob("*.png"):
                Image.new("RGB", (16, 16), "red").save(path)
        done = trainer(*words, cache=tmp_path)
        assert done.returncode == 0, done.stderr
        page = _Page()
        page.feed(text := (tmp_path / "page.html").read_text())
        assert bool(page.images) != is_changed
        assert ("The images changed since" in text) == is_changed


@pytest.mark.engine
def test_page_of_counts_is_written_to_a_bucket_without_unknown_facts(
    bucket_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket_address)
    for name, right in (("ana", 712), ("bruno", 725)):
        metrics = {"validation/accuracy": right / 1000, "validation/count": 1000}
        (tmp_path / f"{name}.JSON").write_text("\ufeff" + json.dumps(metrics))
    papers = [tmp_path / "ana.JSON", tmp_path / "bruno.JSON"]
    page = f"gs://{BUCKET}/{tmp_path.name}/page.html"
    done = trainer("compare", *papers, "--html", page, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = open_store(f"gs://{BUCKET}/{tmp_path.name}").read("page.html")
    assert found is not None
    assert b"environments are unknown" in found.data
    values = json.loads(trainer("compare", *papers, "--json", cache=tmp_path).stdout)["comparisons"][0]
    assert values["only_first_right"] is None
    assert "different spec" not in done.stdout


def publish_again(run: Path, name: str, change: Any) -> None:
    """Change a file of a finished run and update its manifest and success marker."""
    import hashlib

    (run / name).write_text(change((run / name).read_text()))
    manifest = json.loads((run / "MANIFEST.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == name:
            data = (run / name).read_bytes()
            entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(manifest)
    (run / "MANIFEST.json").write_text(text)
    (run / "_SUCCESS").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")


@pytest.mark.engine
def test_runs_that_cannot_be_compared_are_refused(runs: Path, tmp_path: Path) -> None:
    def error_message(code: int, *uris: Path | str) -> str:
        done: subprocess.CompletedProcess[str] = trainer("compare", *uris, cache=tmp_path)
        return error_line(done, code)

    one = runs / "one"
    assert "at least two runs" in error_message(2, one)
    assert "There is no finished run" in error_message(2, one, tmp_path / "nowhere")
    copy = shutil.copytree(one, tmp_path / "copy")
    (copy / "_SUCCESS").unlink()
    assert "not finished" in error_message(2, one, copy)
    for name in ("history.jsonl", "predictions.csv"):
        damaged = shutil.copytree(one, tmp_path / name)
        (damaged / name).write_text("x")
        assert (
            f"differs from the published one. Restore the file, or train again. Received: {damaged / name}"
            in error_message(65, one, damaged)
        )
        (damaged / name).unlink()
        assert (
            f"is missing or not in the manifest. Restore the file, or train again. Received: {damaged / name}"
            in error_message(65, one, damaged)
        )
    other = shutil.copytree(one, tmp_path / "other")
    publish_again(other, "predictions.csv", lambda text: text.replace("discs", "rings"))
    assert "Models of different classes" in error_message(2, one, other)
    newer = shutil.copytree(one, tmp_path / "newer")
    publish_again(newer, "MANIFEST.json", lambda text: text.replace('"schema": 1', '"schema": 2'))
    assert "another version" in error_message(2, one, newer)
    for number, (name, text) in enumerate(OTHERS_FILES):
        changed = shutil.copytree(one, tmp_path / f"changed-{number}")
        # An empty text stands for the file without its validation entries.
        publish_again(changed, name, lambda before, text=text: text or before.replace("validation", "train"))
        with pytest.raises(UsageError, match="another version"):
            read_runs([str(changed)])
    for number, text in enumerate(NO_METRICS):
        (tmp_path / f"{number}.json").write_text(text)
        with pytest.raises(UsageError, match="Received: "):
            read_runs([str(tmp_path / f"{number}.json")])
