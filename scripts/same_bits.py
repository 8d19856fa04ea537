"""Reproducibility check: train a recipe twice in deterministic mode and compare the bits.

    python scripts/same_bits.py cats-vs-dogs --data cats_and_dogs_filtered.zip

Compares history.jsonl, metrics.json, predictions.csv and every array of the last checkpoint. Exits with 1 if
one of them differs. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
from chaos.fixtures import read_result  # noqa: E402


def main() -> None:
    """Train both runs and compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", default="runs/same-bits")
    parser.add_argument("--set", action="append", default=[], help="setting, as for trainer train")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}, {arguments.recipe} twice")
    first, second = (train(arguments, f"{arguments.recipe}-{turn}") for turn in ("first", "second"))
    differing = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    print(
        f"{len(first)} files and arrays compared, {len(differing)} differ: {', '.join(differing) or 'none'}"
    )
    sys.exit(1 if differing else 0)


def train(arguments: argparse.Namespace, name: str) -> dict[str, bytes]:
    """Train the run `name` unless it is finished; return the contents to compare."""
    settings = [part for setting in arguments.set for part in ("--set", setting)]
    command = [
        sys.executable, "-m", "trainer.task", "--recipe", arguments.recipe, "--data", arguments.data,
        "--output", arguments.output, "--run-name", name, "--set", "train.deterministic=true", *settings,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"The run {name} failed with exit code {done.returncode}; see the output above.")
    return read_result(arguments.output, name)


if __name__ == "__main__":
    main()
