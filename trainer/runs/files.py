"""Metadata files of a run folder, and the log of its starts.

Writes environment.json and rejected.csv, each atomically, and reads back what an earlier start wrote. The
data set, precision, batch size and weights of a resumed run are compared with these files.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.data.items import Rejection
from trainer.errors import DivergedError, TemporaryError, UsageError
from trainer.sanitize import shown_address, spreadsheet_cell
from trainer.spec import RunSpec, spec_digest
from trainer.storage.local import append_line, write_json, write_text

IMAGES = "images.json"
"""Image statistics, from which later runs compute drift."""
FINISHED_FILES = (
    "spec.yaml", "environment.json", "dataset.json", IMAGES, "rejected.csv", "starts.jsonl", "history.jsonl",
    "timings.json", "events", "checkpoints", "predictions.csv", "metrics.json", "report.html", "plots",
    "model",
)  # fmt: skip
"""Files and folders of a finished run, without its manifest."""
_REVISION = "REVISION"
"""File with the git commit that a container image was built from."""
_PACKAGES = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "keras", "numpy", "scikit-learn", "pydantic")


@dataclass(frozen=True)
class Start:
    """Properties of a run that must be the same each time it resumes."""

    data_digest: str
    """SHA-256 of the data set, 64 hex digits."""
    precision: str
    global_batch_size: int
    """Batch size of a step over all devices; with train.scale_batch it depends on the number of devices."""
    learning_rate: float | None = None
    """Learning rate before the schedule; recorded but not compared, because the batch size determines it."""
    started_from: str = ""
    """Run whose weights this run started from; empty for random initialization."""
    weights: Mapping[str, str | None] | None = None
    """sha256, origin and licence of the pretrained weights file; None for random initialization."""

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, 64 hex digits; empty without one."""
        return (self.weights or {}).get("sha256") or ""


def require_same_start(path: Path, start: Start) -> None:
    """Raise UsageError if the run at `path` has other data, weights, precision or batch size.

    Reads dataset.json and environment.json, which the earlier start wrote; writes nothing.
    """
    environment, dataset = _read_json(path / "environment.json"), _read_json(path / "dataset.json")
    for name, old, new in (
        ("data", dataset.get("digest"), f"sha256:{start.data_digest}"),
        ("precision", environment.get("precision"), start.precision),
        (
            "global batch size (with train.scale_batch: over all devices)",
            environment.get("global_batch_size"),
            start.global_batch_size,
        ),
    ):
        if old is None:
            raise UsageError(
                f"The {name} of the first start of this run cannot be read.",
                "Choose another --run-name to train a new run.",
                received=path,
            )
        if old != new:
            # Runs older than `split_by` held out only approximately the requested share of each class.
            is_older = name == "data" and "split_by" not in dataset
            other = ", or an earlier version of trainer split them differently" if is_older else ""
            raise UsageError(
                f"The {name} changed since the first start of this run{other}.",
                "Choose another --run-name to train a new run.",
                received=f"{new}, previously {old}",
            )
    require_same_weights(path, start)


def read_start_weights(path: Path) -> dict[str, str | None] | None:
    """Return sha256, origin and licence of the weights file of the run at `path`, or None."""
    return weights_in(_read_json(path / "environment.json"))


def weights_in(environment: Any) -> dict[str, str | None] | None:
    """Return the weights entry of a parsed environment.json, or None if it is missing or invalid."""
    weights = environment.get("weights") if isinstance(environment, dict) else None
    return weights if isinstance(weights, dict) and isinstance(weights.get("sha256"), str) else None


def require_same_weights(path: Path, start: Start) -> None:
    """Raise UsageError if the run at `path` started from a different weights file."""
    before = _read_json(path / "environment.json").get("weights") or {}
    if before.get("sha256", "") != start.weights_sha256:
        raise UsageError(
            "The weights file changed since the first start of this run.",
            "Choose another --run-name to train a new run.",
            received=f"sha256 {start.weights_sha256 or 'none'}, previously {before.get('sha256') or 'none'}",
        )


def read_precision(path: Path) -> str | None:
    """Return the precision of the run at `path`, 'float32' or 'bfloat16'; None if it is not recorded."""
    precision = _read_json(path / "environment.json").get("precision")
    return precision if precision in ("float32", "bfloat16") else None


def read_started_from(path: Path) -> str:
    """Return the run whose weights the run at `path` started from; empty for random initialization."""
    return str(_read_json(path / "environment.json").get("started_from") or "")


def read_images(path: Path) -> dict[str, Any]:
    """Return the images.json of the run at `path`; empty if it is unreadable."""
    return _read_json(path / IMAGES)


def require_complete(path: Path) -> None:
    """Raise TemporaryError if a file or folder of the run has been removed since it was written."""
    missing = [name for name in FINISHED_FILES if not (path / name).exists()]
    if missing:
        raise TemporaryError(
            "Files of this run were removed during training, so it is not published.",
            "Start again with another --run-name.",
            received=f"missing {', '.join(missing)} in {path}",
        )


def write_rejected(path: Path, rejections: Iterable[Rejection]) -> None:
    """Write rejected.csv: one row per rejected file, with its reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    for rejection in rejections:
        # Bytes that are not valid UTF-8 are written as escape sequences.
        name = rejection.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        writer.writerow([spreadsheet_cell(name), spreadsheet_cell(rejection.reason)])
    write_text(path / "rejected.csv", text.getvalue())


def has_rejected(path: Path) -> bool:
    """Return whether the rejected.csv of the run at `path` lists at least one file."""
    try:
        return len((path / "rejected.csv").read_bytes().splitlines()) > 1
    except OSError:
        return False


def write_environment(
    path: Path, spec: RunSpec, devices: str, start: Start, command: Sequence[str]
) -> dict[str, Any]:
    """Write environment.json (command, versions, host, devices, batch size, seed) and return its content."""
    environment: dict[str, Any] = {
        "command": [shown_address(word) for word in command],
        "trainer_version": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": _versions(),
        "host": platform.node(),
        "system": platform.platform(),
        "devices": devices,
        "precision": start.precision,
        "global_batch_size": start.global_batch_size,
        "learning_rate": start.learning_rate,
        "started_from": start.started_from,
        "seed": spec.seed,
        "spec_digest": spec_digest(spec, start.weights_sha256),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if start.weights is not None:
        environment["weights"] = dict(start.weights)
    write_json(path / "environment.json", environment)
    return environment


def current_command() -> list[str]:
    """Return the command line of this process as the user typed it."""
    program = Path(sys.argv[0]).name
    words = {"__main__.py": ["trainer"], "task.py": ["python", "-m", "trainer.task"]}.get(program, [program])
    return [*words, *sys.argv[1:]]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    """Return the git commit of this package, with '-dirty' if modified; None if unknown."""
    package = str(Path(__file__).parent)
    revision_file = resources.files("trainer") / _REVISION
    if revision_file.is_file():
        revision = revision_file.read_text(encoding="utf-8").strip()
        return None if revision == "unknown" else revision
    try:
        process = subprocess.run(
            ["git", "-C", package, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() or None


STARTS = "starts.jsonl"


def count_start(folder: Path, newest_checkpoint: str, max_stalled_starts: int) -> None:
    """Append a row for this start. Raises DivergedError after too many starts without a new checkpoint.

    `newest_checkpoint` is a file name, empty if there is no checkpoint.
    """
    rows = _read(folder)
    stalled = 0
    while stalled < len(rows) and rows[-1 - stalled].get("checkpoint") == newest_checkpoint:
        stalled += 1
    if stalled > max_stalled_starts:
        raise DivergedError(
            f"This run was started {stalled} times from {newest_checkpoint or 'its beginning'} without "
            "writing a new checkpoint.",
            "Find the reason in the log, then start the run with --fresh or raise train.max_stalled_starts.",
            received=max_stalled_starts,
        )
    row = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": platform.node(),
        "pid": os.getpid(),
        "checkpoint": newest_checkpoint,
    }
    append_line(folder / STARTS, json.dumps(row))


def forget_start(folder: Path) -> int:
    """Remove the row of this start, which did not get stuck, and return the number of remaining rows."""
    rows = _read(folder)[:-1]
    write_text(folder / STARTS, "".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def _read(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / STARTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [row for row in map(_row, lines) if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None  # incomplete line, written during a crash
    return row if isinstance(row, dict) else None
