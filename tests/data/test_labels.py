"""Unicode normalization of class names, including the class names of earlier models."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layout_files import cifar_record, put, read_all
from helpers.report_inputs import run_of
from helpers.small_data import SIZE, load, png
from helpers.small_data import put as put_bytes
from helpers.tfrecords import example, framed

from trainer.compare.comparison import compare_runs
from trainer.data.load import load_labelled
from trainer.data.progress import SilentProgress
from trainer.evaluate.metrics import Predictions
from trainer.release.evaluate_pair import in_order, translated
from trainer.report.drift import EarlierRun, find_drift
from trainer.spec.schema import DataSpec
from trainer.training.step import class_weights

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_labels_of_every_layout_are_normalized(tmp_path: Path) -> None:
    put(tmp_path / "folders", f"{COMPOSED}/1.png", f"{DECOMPOSED}/2.png")
    put(tmp_path / "table", "1.png")
    (tmp_path / "table" / "a.csv").write_text(f"path,label\n1.png,{DECOMPOSED}\n")
    record = example(image_encoded=b"x", image_class_text=DECOMPOSED.encode(), image_class_label=0)
    put_bytes(tmp_path / "records" / "train.tfrecord", framed(record))
    put_bytes(tmp_path / "cifar" / "test_batch.bin", cifar_record([0], 7))
    put_bytes(tmp_path / "cifar" / "batches.meta.txt", DECOMPOSED.encode())
    for source in ("folders", "table", "records", "cifar"):
        assert {item.label for item in read_all(tmp_path / source, "auto").items} == {COMPOSED}, source


def test_classes_that_differ_only_in_normal_form_are_one_class(tmp_path: Path) -> None:
    for seed, folder in enumerate([f"train/{COMPOSED}", "train/z", f"val/{DECOMPOSED}", "val/z"]):
        put_bytes(tmp_path / "data" / folder / "1.png", png(seed))
    dataset = load(tmp_path / "data", tmp_path / "cache")
    assert dataset.class_names == (COMPOSED, "z")
    assert dataset.held_out.labels.tolist() == [0, 1]


def test_model_of_an_earlier_version_accepts_both_normal_forms(tmp_path: Path) -> None:
    for seed, name in enumerate([COMPOSED, DECOMPOSED, "z"]):
        put_bytes(tmp_path / "data" / name / f"{seed}.png", png(seed))
    spec = DataSpec(source=str(tmp_path / "data"), image_size=SIZE)
    splits, _ = load_labelled(spec, ("z", DECOMPOSED), tmp_path / "cache", SilentProgress())
    assert sorted(splits["all"].labels.tolist()) == [0, 1, 1]


@pytest.mark.parametrize("key", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("name", [COMPOSED, DECOMPOSED])
def test_class_weights_accept_both_normal_forms(key: str, name: str) -> None:
    assert class_weights({key: 3.0}, (name, "z"), np.array([1, 1])).tolist() == [3.0, 1.0]


def predictions(names: tuple[str, ...], labels: list[int]) -> Predictions:
    probabilities = np.eye(len(names))[[1, 0]]
    return Predictions("test", ("a", "b"), np.array(labels, np.int32), probabilities, names)


def test_runs_with_different_normal_forms_can_be_compared() -> None:
    runs = [run_of(predictions((name, "z"), [0, 1]), name) for name in (COMPOSED, DECOMPOSED)]
    assert compare_runs(*runs).accuracy.difference == 0
    # "é" sorts after "z", but "e" with a combining accent before it: the class order differs.
    old, new = ("e\u0301", "z"), ("z", "\u00e9")
    labels = translated(np.array([0, 1], np.int32), new, old)
    assert labels.tolist() == [1, 0]
    aligned = in_order(predictions(new, [0, 1]), predictions(old, [1, 0]))
    assert aligned.class_names == old
    assert aligned.labels.tolist() == [1, 0]
    assert aligned.probabilities.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_drift_ignores_the_normal_form_of_class_names() -> None:
    def dataset(name: str) -> dict[str, Any]:
        return json.loads(json.dumps({"splits": {"train": {"images": 2, "classes": {name: 1, "z": 1}}}}))

    drift = find_drift(EarlierRun("old", dataset(DECOMPOSED), {}), dataset(COMPOSED), {})
    assert [row.name for row in drift.classes] == [unicodedata.normalize("NFC", DECOMPOSED), "z"]
