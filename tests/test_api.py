"""The Python interface: train, load, predict and evaluate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import trainer
from trainer.errors import UsageError

SMALL = {
    "data.image_size": 16,
    "model": {"family": "residual", "stem_filters": 8, "filters": [16], "blocks": [1]},
    "train.epochs": 6,
    "train.global_batch_size": 6,
    "train.precision": "float32",
    "train.label_smoothing": np.float64(0.1),
}


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> trainer.Run:
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return trainer.train(photos, folder / "runs", run_name="first", settings=SMALL)


@pytest.mark.engine
def test_training_returns_the_finished_run(run: trainer.Run) -> None:
    assert run.uri.endswith("/runs/first")
    assert Path(run.report).is_file()
    assert run.metrics == json.loads((Path(run.uri) / "metrics.json").read_text())
    spec = (Path(run.uri) / "spec.yaml").read_text()
    assert "epochs: 6" in spec
    assert "stem_filters: 8" in spec


@pytest.mark.engine
def test_latest_run_is_loaded(run: trainer.Run) -> None:
    latest = trainer.load(Path(run.uri).parent / "latest")
    assert (latest.uri, repr(latest)) == (run.uri, f"Run({run.uri!r})")
    assert latest.metrics == run.metrics


@pytest.mark.engine
def test_predictions_have_all_probabilities_and_problems(
    run: trainer.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (damaged := tmp_path / "damaged.png").write_bytes(b"no image")
    good, bad = run.predict(photos / "discs" / "0.png", damaged)
    assert good.label == max(good.probabilities, key=lambda name: good.probabilities[name])
    assert set(good.probabilities) == {"discs", "squares", "stripes"}
    assert sum(good.probabilities.values()) == pytest.approx(1.0)
    assert (good.probability, good.labels, good.problem) == (
        max(good.probabilities.values()),
        (good.label,),
        "",
    )
    assert (bad.label, bad.probabilities) == ("", {})
    assert "not an image" in bad.problem


@pytest.mark.engine
def test_evaluation_returns_the_metrics_of_each_split(
    run: trainer.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    metrics = run.evaluate(photos, {"data.layout": "folders"})
    assert metrics["all"]["count"] == len(list(photos.rglob("*.png")))
    assert metrics["all"]["trained_checked"] == metrics["all"]["count"]  # as the command reports it
    with pytest.raises(UsageError):
        run.evaluate(photos, {"data.image_size": 8})


def test_missing_run_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        trainer.load(tmp_path)
    assert caught.value.problem == "There is no finished run."
    assert caught.value.remedy
    assert caught.value.received == str(tmp_path)


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, trainer; trainer.__version__\n"
        "print([name for name in ('tensorflow', 'click', 'pydantic') if name in sys.modules])\n"
        "trainer.load; print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        trainer.nothing  # noqa: B018
