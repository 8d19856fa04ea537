"""What a run leaves behind: the folder, and the small files that say what it was.

In: the spec, the data that was found, the machine. Out: spec.yaml, environment.json,
dataset.json, rejected.csv and metrics.json in OUTPUT/<run>, each written whole.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.data.items import Rejection
from trainer.exits import TemporaryError, UsageError
from trainer.publish import is_finished, require_unchanged
from trainer.spec import RunSpec, dump_spec, read_spec, spec_changes, spec_digest
from trainer.storage.local import is_temporary, prepare_folder, write_json, write_text

_PROMISED = (
    "spec.yaml", "environment.json", "dataset.json", "rejected.csv", "history.jsonl", "events", "checkpoints",
    "predictions.csv", "metrics.json", "report.html", "plots", "model",
)  # fmt: skip
"""What a finished run holds beside its manifest."""
_PACKAGES = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "keras", "numpy", "scikit-learn", "pydantic")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, and whether the run is finished."""

    path: Path
    finished: bool

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def has_checkpoints(self) -> bool:
        """Whether training has begun."""
        return any(self.checkpoints.glob("step-*.npz"))

    @property
    def model(self) -> Path:
        """Where the SavedModel goes."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.path / "report.html"


def open_run_folder(spec: RunSpec, now: datetime) -> RunFolder:
    """Return the folder of the run that `spec` describes, made if it is new.

    A folder that holds the same run goes on; one that holds another is refused with the
    keys that differ, and left as it is. Raises UsageError, and TemporaryError for a full disk.
    """
    if "://" in spec.output:
        raise UsageError(
            f"Only folders can be an output yet; copy the run folder afterwards. Received: {spec.output}"
        )
    name = spec.run_name or _default_name(spec, now)
    try:
        path = Path(spec.output).expanduser() / name
    except RuntimeError:
        raise UsageError(f"There is no such user's home folder. Received: {spec.output}") from None
    if path.exists() and not path.is_dir():
        raise UsageError(f"The run folder is a file; choose another --output or --run-name. Received: {path}")
    folder = RunFolder(path, is_finished(path))
    require_unchanged(path)
    if path.exists() and not all(map(is_temporary, path.iterdir())):
        _require_same_run(path, spec, has_begun=folder.has_checkpoints or folder.finished)
    if folder.has_checkpoints or folder.finished:
        return folder
    prepare_folder(path)
    # Name and place are settled: written down, the same file continues the same run from anywhere.
    settled = {"run_name": name, "output": str(path.parent.absolute())}
    write_text(path / "spec.yaml", dump_spec(spec.model_copy(update=settled)))
    return folder


def _default_name(spec: RunSpec, now: datetime) -> str:
    return f"{spec.recipe or 'run'}-{now:%Y%m%d-%H%M%S}-{spec_digest(spec)[:6]}"


def _require_same_run(path: Path, spec: RunSpec, has_begun: bool) -> None:
    """Raise UsageError for a folder that is no run, or a run that began with another spec."""
    written = path / "spec.yaml"
    if not written.exists():
        raise UsageError(
            "The folder holds something that is not a run; choose another --output or --run-name. "
            f"Received: {path}"
        )
    changes = spec_changes(read_spec(written), spec)
    if changes and has_begun:
        raise UsageError(
            f"The run {path.name} exists with another spec; choose another --run-name. "
            f"What differs: {'; '.join(changes)}"
        )


def require_same_start(folder: RunFolder, data_digest: str, precision: str) -> None:
    """Raise UsageError if the run has checkpoints of other data or of another precision.

    Reads what the earlier start wrote to dataset.json and environment.json; writes nothing.
    """
    if not folder.has_checkpoints:
        return
    before = (
        _read_json(folder.path / "dataset.json").get("digest"),
        _read_json(folder.path / "environment.json").get("precision"),
    )
    for what, old, new in zip(
        ("data", "precision"), before, (f"sha256:{data_digest}", precision), strict=True
    ):
        if old is None:
            raise UsageError(
                f"What this run said of its {what} when it began can't be read any more; give the new one "
                f"another --run-name. Received: {folder.path}"
            )
        if old != new:
            raise UsageError(
                f"The {what} changed since this run began; give the new one another --run-name. "
                f"Received: {new}, it was {old}"
            )


def require_complete(folder: RunFolder) -> None:
    """Raise TemporaryError if something that the run wrote has been removed since."""
    missing = [name for name in _PROMISED if not (folder.path / name).exists()]
    if missing:
        raise TemporaryError(
            "Files of this run were removed while it ran, so it is not published; start again with another "
            f"--run-name. Received: no {', '.join(missing)} in {folder.path}"
        )


def write_rejected(path: Path, rejections: Iterable[Rejection]) -> None:
    """Write rejected.csv: one row for each file that was left out, with its reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    for each in rejections:
        # A name that isn't UTF-8 is shown with its odd bytes spelled out.
        name = each.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        writer.writerow([name, each.reason])
    write_text(path / "rejected.csv", text.getvalue())


def write_environment(
    path: Path, spec: RunSpec, devices: str, precision: str, command: Sequence[str]
) -> dict[str, Any]:
    """Write environment.json: what ran, of which version, where; return it."""
    environment = {
        "command": list(command),
        "trainer_version": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": _versions(),
        "host": platform.node(),
        "system": platform.platform(),
        "devices": devices,
        "precision": precision,
        "seed": spec.seed,
        "spec_digest": spec_digest(spec),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(path / "environment.json", environment)
    return environment


def discard_folder(path: Path) -> None:
    """Remove what a crash may have left at `path`."""
    if path.exists():
        shutil.rmtree(path)


def replace_folder(temporary: Path, final: Path) -> None:
    """Give the finished folder `temporary` its name, in the place of what a crash may have left."""
    discard_folder(final)
    temporary.rename(final)


def current_command() -> list[str]:
    """Return the command line of this process, as a person would type it."""
    program = Path(sys.argv[0]).name
    typed = {"__main__.py": ["trainer"], "task.py": ["python", "-m", "trainer.task"]}.get(program, [program])
    return [*typed, *sys.argv[1:]]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
    """Return the commit that this package is run from, with '-dirty' if it is changed; None outside git."""
    here = str(Path(__file__).parent)
    try:
        done = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
