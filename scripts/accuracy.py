"""Accuracy of a recipe over several seeds, one complete run each.

    python scripts/accuracy.py cats-vs-dogs --data cats_and_dogs_filtered.zip --seeds 3
    python scripts/accuracy.py auto --data cifar10_images.zip --images 500 --beside cifar10 --beside-epochs 10

Prints the figures of each run from its metrics.json and timings.json, then mean and standard deviation, then
the verdicts of the reports. Finished runs are not repeated, and an interrupted one resumes.
`--images` draws that many training images per class, with another draw for each seed. `--beside` trains
another recipe on the same data and prints the total time of each run as a multiple of its training time.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from draw_images import draw_images


def main() -> None:
    """Train all seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", default="runs/accuracy", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="setting, as for trainer train")
    parser.add_argument("--images", type=int, help="training images per class, drawn by the seed")
    parser.add_argument("--classes", type=int, help="number of classes, with --images")
    parser.add_argument("--choose", action="store_true", help="hold out training images, with --images")
    parser.add_argument("--beside", help="recipe to compare the time with")
    parser.add_argument("--beside-epochs", type=int, default=1)
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}"
    print(f"{machine}, {arguments.recipe}, {arguments.seeds} seeds", flush=True)
    rows, folders = [], []
    for seed in range(arguments.seeds):
        data = prepare_data(arguments, seed)
        folder, seconds = train(arguments, arguments.recipe, data, seed, arguments.set)
        folders.append(folder)
        rows.append(read_figures(folder) | compute_times(arguments, data, seed, seconds))
    names = list(rows[0])
    print("seed  " + "  ".join(f"{name:>20}" for name in names))
    for seed, row in enumerate(rows):
        print(f"{seed:<6}" + "  ".join(f"{row[name]:>20.4f}" for name in names))
    for label, summarize in (("mean", statistics.fmean), ("stdev", spread)):
        print(f"{label:<6}" + "  ".join(f"{summarize([row[name] for row in rows]):>20.4f}" for name in names))
    for seed, folder in enumerate(folders):
        print(f"seed {seed}: {read_verdict(folder)}")


def prepare_data(arguments: argparse.Namespace, seed: int) -> str:
    """Return the data of one seed: the whole source, or a folder with the images drawn."""
    if arguments.images is None:
        return str(arguments.data)
    drawn = (
        Path(f"{arguments.output}-data") / f"{arguments.images}-{arguments.classes}-{arguments.choose}-{seed}"
    )
    if not drawn.exists():
        draw_images(Path(arguments.data), drawn, arguments.images, arguments.classes, seed, arguments.choose)
    return str(drawn)


def compute_times(arguments: argparse.Namespace, data: str, seed: int, seconds: float) -> dict[str, float]:
    """Return the total time of a run, also as a multiple of the training time of the `--beside` recipe."""
    figures = {"seconds in all": seconds}
    if arguments.beside:
        settings = [f"train.epochs={arguments.beside_epochs}"]
        beside, _ = train(arguments, arguments.beside, data, seed, settings)
        trained = json.loads((beside / "timings.json").read_text())["training_seconds"]
        figures |= {"seconds beside": trained, "times": seconds / trained}
    return figures


def train(
    arguments: argparse.Namespace, recipe: str, data: str, seed: int, sets: list[str]
) -> tuple[Path, float]:
    """Train one seed unless its run is finished; return its folder and the process time, NaN if finished."""
    name = f"{recipe}-seed-{seed}"
    settings = [part for setting in sets for part in ("--set", setting)]
    command = [
        sys.executable, "-m", "trainer.task", "--recipe", recipe, "--data", data,
        "--output", str(arguments.output), "--run-name", name, "--set", f"seed={seed}", *settings,
    ]  # fmt: skip
    is_done = (arguments.output / name / "timings.json").exists()
    began = time.monotonic()
    done = subprocess.run(command, check=False, stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"The run {name} failed with exit code {done.returncode}; see the output above.")
    return arguments.output / name, math.nan if is_done else time.monotonic() - began


def read_figures(folder: Path) -> dict[str, float]:
    """Return the accuracies, calibration error and training time of the run in `folder`."""
    metrics = json.loads((folder / "metrics.json").read_text())
    times = json.loads((folder / "timings.json").read_text())
    held_out = "validation" if "validation/accuracy" in metrics else "test"
    return {
        f"{held_out}/accuracy": metrics[f"{held_out}/accuracy"],
        "train/accuracy": metrics["train/accuracy"],
        "train minus held-out": metrics["train/accuracy"] - metrics[f"{held_out}/accuracy"],
        "calibration error": metrics[f"{held_out}/calibration_error"],
        "training seconds": times["training_seconds"],
    }


def read_verdict(folder: Path) -> str:
    """Return the sentence at the top of the run's report."""
    match = re.search(r'<p class="headline">(.*?)</p>', (folder / "report.html").read_text())
    return html.unescape(match[1]) if match else "no verdict"


def spread(values: list[float]) -> float:
    """Return the standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
