"""End-to-end runs on non-square grey and RGBA images: training, export and prediction."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.trainer_process import trainer
from PIL import Image

MODELS = {
    1: "{family: plain, filters: [8], average_mirror: true}",
    4: "{family: residual, stem_filters: 4, filters: [8], blocks: [1], average_mirror: true}",
}
CROPS = {1: "{whole_epochs: 1}", 4: "{first_size: 8, size: 12, whole_epochs: 1}"}


@pytest.mark.engine
@pytest.mark.parametrize("channels", [1, 4])
def test_run_on_non_square_grey_and_rgba_images_predicts_as_evaluated(
    channels: int, photos: Path, tmp_path: Path
) -> None:
    data, run = tmp_path / "pictures", tmp_path / "runs" / "a"
    for path in photos.rglob("*.png"):
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        image = Image.open(path).convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(data / path.parent.name / path.name)
    settings = [
        f"data={{image_size: [16, 24], channels: {channels}, resize: crop, crop_fraction: 0.9}}",
        "data.interpolation=bicubic", f"model={MODELS[channels]}", f"augment.crop={CROPS[channels]}",
        "augment={flip: horizontal, brightness: 0.1, saturation: 0.5, noise: 0.1, erase: 0.5, cutmix: 0.5}",
        "train.epochs=2", "train.global_batch_size=8", "train.precision=bfloat16",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    done = trainer("train", "--data", data, "--output", run.parent, "--run-name", "a", *words, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "16 x 24 px" in done.stdout + done.stderr
    kind = {1: "grey", 4: "RGBA"}[channels]
    assert f"16 x 24 pixels, {kind}" in (run / "report.html").read_text()
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    found = trainer("evaluate", run, "--data", data, "--json", cache=tmp_path)
    accuracy = np.mean([row["label"] == row["predicted"] for row in rows])
    assert json.loads(found.stdout)["all/accuracy"] == pytest.approx(accuracy)
