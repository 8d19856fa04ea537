"""Images on which two models disagree, read from shards."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small_data import SIZE, load
from helpers.small_shards import files_of, make_packed

from trainer.compare.comparison import compare_runs
from trainer.compare.page import read_disagreements
from trainer.compare.pair import Comparison
from trainer.compare.runs import Run
from trainer.evaluate.metrics import Predictions


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """A run that is right on every held-out image, one that is wrong on every one, and their shards."""
    folder = tmp_path_factory.mktemp("compared")
    _, shards = make_packed(folder)
    dataset = load(shards, folder / "cache")
    split = dataset.held_out
    runs = []
    for name, answers in (("one", split.labels), ("two", 1 - split.labels)):
        predictions = Predictions(
            split.name, tuple(item.name for item in split.items), split.labels,
            np.where(np.eye(2)[answers] > 0, 0.9, 0.1).astype(np.float32), dataset.class_names,
        )  # fmt: skip
        spec = {"data": {"source": str(shards), "image_size": SIZE}}
        runs.append(Run(name, name, {}, split.name, predictions, spec, dataset=dataset.summary))
    counted = [
        replace(run, metrics={"validation/correct": right, "validation/count": len(split.labels)})
        for run, right in zip(runs, (len(split.labels), 0), strict=True)
    ]
    return compare_runs(*counted), shards


def test_images_are_read_from_shards(compared: tuple[Comparison, Path], tmp_path: Path) -> None:
    comparison, _ = compared
    found, why = read_disagreements(comparison, tmp_path)
    assert why == ""
    assert len(found) == len(comparison.disagreements) == 8
    assert all(each.uri.startswith("data:image/") for each in found)
    assert comparison.first.predictions is not None
    assert {each.name for each in found} == set(comparison.first.predictions.names)


def test_images_of_repacked_shards_are_not_shown(compared: tuple[Comparison, Path], tmp_path: Path) -> None:
    comparison, _ = compared
    other = replace(comparison.first, dataset={**comparison.first.dataset, "digest": "sha256:1"})
    found, why = read_disagreements(replace(comparison, first=other), tmp_path)
    assert "The images changed since" in why
    assert not any(each.uri for each in found)


def test_damaged_shard_hides_only_its_own_images(compared: tuple[Comparison, Path], tmp_path: Path) -> None:
    comparison, shards = compared
    copy = tmp_path / "shards"
    copy.mkdir()
    for name, data in files_of(shards).items():
        # Damage an image itself; the checksum of its record is not verified.
        (copy / name).write_bytes(
            data.replace(b"IDAT", b"XXXX", 1) if name.startswith("validation") else data
        )
    moved = {"data": {"source": str(copy), "image_size": SIZE}}
    found, why = read_disagreements(
        replace(comparison, first=replace(comparison.first, spec=moved)), tmp_path
    )
    assert why == ""
    assert 0 < sum(bool(each.uri) for each in found) < len(found)


def test_comparison_does_not_load_tensorflow() -> None:
    loaded = "import sys, trainer.compare.page; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
