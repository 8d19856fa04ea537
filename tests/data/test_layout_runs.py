"""End-to-end commands on common folder and table layouts: output and trained classes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.photos import draw_photo
from helpers.trainer_process import QUICK, refused, trainer

pytestmark = pytest.mark.engine


def draw(path: Path, name: str, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_photo(name, number).save(path)


def test_training_prints_classes_and_unused_files_and_evaluation_reads_a_table(
    tmp_path: Path,
) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    for name in ("discs", "squares"):
        for number in range(8):
            split = "training_set" if number < 5 else "test_set"
            draw(data / split / split / name / f"{number}.png", name, number)
    draw(data / "seg_pred" / "1.png", "discs", 30)
    draw(data / "training_set" / "training_set" / ".net" / "1.png", "discs", 31)
    (data / "scores.csv").write_text("id,score\n1,0.5\n")
    done = trainer("train", "--data", data, "--output", tmp_path, "--run-name", "run", *QUICK, cache=cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Found 10 train and 6 test images in 2 classes: +discs, squares", done.stdout)
    assert "seg_pred/ (1 image) is not used" in done.stdout
    assert ".net/ (1 image) is not used" in done.stdout
    assert "scores.csv is not used" in done.stdout
    dataset = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert dataset["class_names"] == ["discs", "squares"]
    assert len(dataset["warnings"]) == 3

    for number in range(4):
        draw(tmp_path / "more" / "images" / f"{number}.png", ("discs", "squares")[number % 2], 40 + number)
    rows = "".join(f"{('discs', 'squares')[number % 2]},{number}\n" for number in range(4))
    (tmp_path / "more" / "labels.csv").write_text(f"dx,image_id\n{rows}")
    (tmp_path / "more" / "notes.csv").write_text("id,age\n1,2\n")
    done = trainer("evaluate", tmp_path / "run", "--data", tmp_path / "more", cache=cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all: 4 images" in done.stdout
    assert "notes.csv is not used" in done.stderr


def test_ambiguous_folders_exit_with_65_and_leave_no_run(tmp_path: Path) -> None:
    for name in ("discs", "squares", "val"):
        draw(tmp_path / "data" / name / "1.png", "discs", 1)
    done = trainer(
        "train", "--data", tmp_path / "data", "--output", tmp_path / "runs", cache=tmp_path / "cache"
    )
    refused(done, 65, "names of splits", "data.layout=folders", "Received: val")
    assert not list((tmp_path / "runs").glob("[!.]*"))
