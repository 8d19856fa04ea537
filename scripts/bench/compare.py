"""Wall time of `trainer compare` for two runs of 10,000 predictions each.

    python scripts/bench/compare.py

The runs are synthetic: predictions of two models for the same images of ten classes, published like any run.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

from trainer.evaluate.metrics import Predictions, compute_metrics
from trainer.evaluate.prediction_files import write_predictions
from trainer.runs.publish import publish
from trainer.spec import dump_spec, load_spec
from trainer.storage import open_store

IMAGES, CLASSES, TIMES, MAX_SECONDS = 10_000, 10, 5, 3.0


def main() -> None:
    """Create the runs, compare them several times, and print the time."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in (1, 2):
            make_run(Path(folder), f"run-{seed}", seed)
        command = [sys.executable, "-m", "trainer.cli", "compare", f"{folder}/run-1", f"{folder}/run-2"]
        seconds = []
        for _ in range(TIMES):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}, {date.today()}")
    print(
        f"compare of {IMAGES:,} predictions each: {statistics.median(seconds):.2f} s "
        f"(limit {MAX_SECONDS:g}; {min(seconds):.2f} to {max(seconds):.2f}, {TIMES} times)"
    )


def make_run(output: Path, name: str, seed: int) -> None:
    """Publish a run whose model classifies about nine out of ten images correctly."""
    random = np.random.default_rng(seed)
    labels = (np.arange(IMAGES) % CLASSES).astype(np.int32)
    logits = random.normal(size=(IMAGES, CLASSES))
    logits[np.arange(IMAGES), labels] += 3.0
    rows = np.exp(logits)
    names = tuple(f"validation/{index:05}.jpg" for index in range(IMAGES))
    class_names = tuple(f"class-{index}" for index in range(CLASSES))
    predictions = Predictions(
        "validation", names, labels, rows / rows.sum(axis=1, keepdims=True), class_names
    )
    (folder := output / name).mkdir()
    write_predictions(folder / "predictions.csv", [predictions])
    metrics = {f"validation/{key}": value for key, value in compute_metrics(predictions).items()}
    spec = load_spec(None, "demo", (f"seed={seed}",), {"output": str(output), "run_name": name})
    for file, text in (
        ("metrics.json", json.dumps(metrics)),
        ("spec.yaml", dump_spec(spec)),
        ("environment.json", json.dumps({"trainer_version": "0", "packages": {}})),
        ("dataset.json", json.dumps({"digest": "sha256:0", "splits": {}})),
        ("history.jsonl", json.dumps({"epoch": 1}) + "\n"),
        ("timings.json", json.dumps({"epochs": [{"seconds": 1.0, "images_per_second": 1.0}]})),
    ):
        (folder / file).write_text(text)
    publish(open_store(str(output)), name, folder)


if __name__ == "__main__":
    main()
