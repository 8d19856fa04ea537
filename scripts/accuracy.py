"""Accuracy of a recipe over several seeds, each a whole run.

    python scripts/accuracy.py cats-vs-dogs --data cats_and_dogs_filtered.zip --seeds 3

Prints each run's figures from its metrics.json and timings.json, then mean and spread, then the
verdicts of the reports. Runs that are finished are not done again, and an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path


def main() -> None:
    """Do the runs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", default="runs/accuracy", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="as for trainer train")
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}"
    print(f"{machine}, {arguments.recipe}, {arguments.seeds} seeds")
    folders = [train(arguments, seed) for seed in range(arguments.seeds)]
    rows = [read_figures(folder) for folder in folders]
    names = list(rows[0])
    print("seed  " + "  ".join(f"{name:>20}" for name in names))
    for seed, row in enumerate(rows):
        print(f"{seed:<6}" + "  ".join(f"{row[name]:>20.4f}" for name in names))
    for label, summarize in (("mean", statistics.fmean), ("stdev", spread)):
        print(f"{label:<6}" + "  ".join(f"{summarize([row[name] for row in rows]):>20.4f}" for name in names))
    for seed, folder in enumerate(folders):
        print(f"seed {seed}: {read_verdict(folder)}")


def train(arguments: argparse.Namespace, seed: int) -> Path:
    """Do the run of one seed, or find it done; return its folder."""
    name = f"{arguments.recipe}-seed-{seed}"
    settings = [each for setting in arguments.set for each in ("--set", setting)]
    command = [
        sys.executable, "-m", "trainer.task", "--recipe", arguments.recipe, "--data", arguments.data,
        "--output", str(arguments.output), "--run-name", name, "--set", f"seed={seed}", *settings,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"the run {name} ended with exit code {done.returncode}; see above")
    return Path(arguments.output) / name


def read_figures(folder: Path) -> dict[str, float]:
    """Return what the run in `folder` reached on its held-out split, the gap to train, and its time."""
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
    found = re.search(r'<p class="headline">(.*?)</p>', (folder / "report.html").read_text())
    return html.unescape(found[1]) if found else "no verdict"


def spread(values: list[float]) -> float:
    """Return the standard deviation, 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
