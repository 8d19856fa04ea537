"""Arguments and settings of a command: validated, and paths made absolute, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.release_inputs import finished

from trainer.cli.app import cli
from trainer.cli.config import load_run_spec
from trainer.cli.paths import output_of
from trainer.errors import UsageError
from trainer.runs.publish import find_run
from trainer.spec import PretrainedSpec
from trainer.storage.folder import FolderStore


def test_required_accuracy_rejects_nan(tmp_path: Path) -> None:
    words = ["train", "--output", str(tmp_path), "--assert-accuracy-at-least", "nan"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert "is not a number" in done.output


def test_test_data_path_is_absolute_and_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_run_spec(None, "demo", ("publish.test_data=test",), {}, None, tmp_path)
    assert spec.publish.test_data == str(tmp_path / "test")
    words = ["train", "--recipe", "demo", "--output", str(tmp_path / "runs"), "--run-name", "one"]
    done = CliRunner().invoke(
        cli, [*words, "--set", "publish.test_data=test", "--set", "publish.release=true"]
    )
    assert isinstance(done.exception, UsageError)
    assert "Check the path in publish.test_data" in str(done.exception)
    assert not (tmp_path / "runs" / "one").exists()


def test_promotion_rejects_a_folder_that_is_not_named_like_a_run(tmp_path: Path) -> None:
    for name in ("second try", "_two"):
        finished(FolderStore(tmp_path / "runs"), tmp_path / "local", name)
        with pytest.raises(UsageError, match="Rename it"):
            output_of(str(tmp_path / "runs" / name))
    finished(FolderStore(tmp_path / "runs"), tmp_path / "local", "two")
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "two")
    output, name = output_of(str(tmp_path / "link"))
    assert (output.uri, name) == (str(tmp_path / "runs"), "two")
    (tmp_path / "runs" / "champion").write_text("two\n")
    assert output_of(str(tmp_path / "runs" / "champion"))[1] == "two"
    (tmp_path / "champion").mkdir()  # a folder may have any name
    assert find_run(str(tmp_path / "champion")).uri == str(tmp_path / "champion")


def test_html_page_must_be_an_html_file_outside_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished(FolderStore(tmp_path / "runs"), tmp_path / "local", "two")
    (tmp_path / "runs" / "two" / "starts.jsonl").write_text("")
    metrics = '{"validation/accuracy": 0.7, "validation/count": 10}'
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(metrics)
    for html, words in (
        ("b.json", "requires a file name"), ("runs/champion", "requires a file name"),
        ("runs/two/report.html", "inside a run"), ("runs/two/plots/a.HTML", "inside a run"),
        ("", "requires a file name"), ("gs://bucket", "requires a file name"),
    ):  # fmt: skip
        done = CliRunner().invoke(cli, ["compare", "a.json", "b.json", "--html", html])
        assert isinstance(done.exception, UsageError), html
        assert words in str(done.exception)
    assert (tmp_path / "b.json").read_text() == metrics


def test_weights_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def weights_of(weights: str) -> str:
        settings = (f"model={{family: pretrained, weights: '{weights}'}}", "data.image_size=32")
        model = load_run_spec(None, "demo", settings, {}, None, tmp_path).model
        assert isinstance(model, PretrainedSpec)
        return model.weights

    for weights in ("./w.h5", "w.h5", f"{tmp_path}/sub/../w.h5"):
        assert weights_of(weights) == str(tmp_path / "w.h5")
    monkeypatch.setenv("HOME", "/home/me")
    assert weights_of("~/w.h5") == "/home/me/w.h5"
    for weights in ("default", "none", "https://a.example/w.h5", "gs://bucket/w.h5", "file:///w.h5"):
        assert weights_of(weights) == weights
    with pytest.raises(UsageError, match=r"two slashes.*https://host/model\.weights\.h5"):
        weights_of("https:/a.example/w.h5")


def test_automatic_settings_stay_open_without_a_weights_setting(tmp_path: Path) -> None:
    spec = load_run_spec(None, "fast", (), {"data.source": str(tmp_path)}, None, tmp_path)
    assert "model" not in spec.model_fields_set
