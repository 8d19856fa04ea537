"""The small files that say what a run was.

In: the data that was found, the machine, and what an earlier start wrote. Out:
environment.json and rejected.csv in the run's folder, each written whole.
"""

from __future__ import annotations

import csv
import io
import json
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
from trainer.exits import TemporaryError, UsageError
from trainer.printable import shown_address, spreadsheet_cell
from trainer.spec import RunSpec, spec_digest
from trainer.storage.local import write_json, write_text

IMAGES = "images.json"
"""What the images look like, for the drift of later runs."""
_PROMISED = (
    "spec.yaml", "environment.json", "dataset.json", IMAGES, "rejected.csv", "starts.jsonl", "history.jsonl",
    "timings.json", "events", "checkpoints", "predictions.csv", "metrics.json", "report.html", "plots",
    "model",
)  # fmt: skip
"""What a finished run holds beside its manifest."""
_REVISION = "REVISION"
"""The commit's name, where an image was built of it."""
_PACKAGES = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "keras", "numpy", "scikit-learn", "pydantic")


@dataclass(frozen=True)
class Start:
    """What a run has to begin with again, each time that it goes on."""

    data_digest: str
    """SHA-256 of the data set, 64 hex digits."""
    precision: str
    global_batch_size: int
    """That of the steps: with train.scale_batch it follows from the machines."""
    learning_rate: float | None = None
    """Before its schedule; it follows from the batch, and so is written down and not compared."""
    started_from: str = ""
    """The run whose weights it began with; empty for fresh ones."""
    weights: Mapping[str, str | None] | None = None
    """sha256, origin and licence of the file of weights that it began with; None for fresh ones."""

    @property
    def weights_sha256(self) -> str:
        """The digest of the file of weights, 64 hex digits; empty without one."""
        return (self.weights or {}).get("sha256") or ""


def require_same_start(path: Path, start: Start) -> None:
    """Raise UsageError if the run at `path` began with other data, another precision or another batch.

    Reads what the earlier start wrote to dataset.json and environment.json; writes nothing.
    """
    environment, dataset = _read_json(path / "environment.json"), _read_json(path / "dataset.json")
    for what, old, new in (
        ("data", dataset.get("digest"), f"sha256:{start.data_digest}"),
        ("precision", environment.get("precision"), start.precision),
        (
            "global batch size (of train.scale_batch: that of all devices)",
            environment.get("global_batch_size"),
            start.global_batch_size,
        ),
    ):
        if old is None:
            raise UsageError(
                f"What this run said of its {what} when it began can't be read any more; give the new one "
                f"another --run-name. Received: {path}"
            )
        if old != new:
            # Before `split_by` was written, the share of each class that was held out was not exact.
            is_older = what == "data" and "split_by" not in dataset
            other = ", or an earlier version of trainer split them differently" if is_older else ""
            raise UsageError(
                f"The {what} changed since this run began{other}; give the new one another --run-name. "
                f"Received: {new}, it was {old}"
            )
    require_same_weights(path, start)


def read_start_weights(path: Path) -> dict[str, str | None] | None:
    """Return sha256, origin and licence of the file of weights that the run at `path` began with, or None."""
    return weights_in(_read_json(path / "environment.json"))


def weights_in(environment: Any) -> dict[str, str | None] | None:
    """Return what environment.json, parsed, has of a file of weights; None for nothing that can be used."""
    found = environment.get("weights") if isinstance(environment, dict) else None
    return found if isinstance(found, dict) and isinstance(found.get("sha256"), str) else None


def require_same_weights(path: Path, start: Start) -> None:
    """Raise UsageError if the run at `path` began with another file of weights."""
    before = _read_json(path / "environment.json").get("weights") or {}
    if before.get("sha256", "") != start.weights_sha256:
        raise UsageError(
            "The file of weights changed since this run began; give the new one another --run-name. "
            f"Received: sha256 {start.weights_sha256 or 'of none'}, it was {before.get('sha256') or 'none'}"
        )


def read_precision(path: Path) -> str | None:
    """Return 'float32' or 'bfloat16', which the run at `path` began with; None if it doesn't say."""
    precision = _read_json(path / "environment.json").get("precision")
    return precision if precision in ("float32", "bfloat16") else None


def read_started_from(path: Path) -> str:
    """Return the run whose weights the run at `path` began with; empty for fresh ones."""
    return str(_read_json(path / "environment.json").get("started_from") or "")


def read_images(path: Path) -> dict[str, Any]:
    """Return images.json of the run at `path`; nothing if it can't be read."""
    return _read_json(path / IMAGES)


def require_complete(path: Path) -> None:
    """Raise TemporaryError if something that the run wrote has been removed since."""
    missing = [name for name in _PROMISED if not (path / name).exists()]
    if missing:
        raise TemporaryError(
            "Files of this run were removed while it ran, so it is not published; start again with another "
            f"--run-name. Received: no {', '.join(missing)} in {path}"
        )


def write_rejected(path: Path, rejections: Iterable[Rejection]) -> None:
    """Write rejected.csv: one row for each file that was left out, with its reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    for each in rejections:
        # A name that isn't UTF-8 is shown with its odd bytes spelled out.
        name = each.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        writer.writerow([spreadsheet_cell(name), spreadsheet_cell(each.reason)])
    write_text(path / "rejected.csv", text.getvalue())


def has_rejected(path: Path) -> bool:
    """Return whether rejected.csv of the run at `path` names a file."""
    try:
        return len((path / "rejected.csv").read_bytes().splitlines()) > 1
    except OSError:
        return False


def write_environment(
    path: Path, spec: RunSpec, devices: str, start: Start, command: Sequence[str]
) -> dict[str, Any]:
    """Write environment.json: what ran, of which version, where; return it."""
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
    """Return the command line of this process, as a person would type it."""
    program = Path(sys.argv[0]).name
    typed = {"__main__.py": ["trainer"], "task.py": ["python", "-m", "trainer.task"]}.get(program, [program])
    return [*typed, *sys.argv[1:]]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """Return the commit that this package is of, with '-dirty' if it is changed; None where nobody knows."""
    here = str(Path(__file__).parent)
    built_of = resources.files("trainer") / _REVISION
    if built_of.is_file():
        revision = built_of.read_text(encoding="utf-8").strip()
        return None if revision == "unknown" else revision
    try:
        done = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
