"""A run folder to a published run: manifest, marker, pointer, in that order.

In: a run folder in which everything else is written. Out: `MANIFEST.json` (every file, its
size and sha256), `_SUCCESS` (the manifest's sha256, made by one process only) and, in the
folder of all runs, `latest` (the name of the run). A crash between two of them leaves a
run that isn't finished, or a pointer to the run before, never a lie.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.exits import UsageError
from trainer.storage import create_bytes, explained, hash_file, is_temporary, write_json, write_text

MANIFEST = "MANIFEST.json"
MARKER = "_SUCCESS"
POINTER = "latest"
SCHEMA = 1
"""Of the manifest; a reader refuses what it doesn't know."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a run."""

    path: str
    """Below the run folder, with '/'."""
    size: int
    """Bytes."""
    sha256: str


def publish(run_folder: Path) -> Path:
    """Make `run_folder` a finished run and the latest one; return the pointer's path.

    A run that is already finished keeps its manifest and marker, and only the pointer moves:
    so a publication that a crash cut short can be repeated. Nothing may write to the folder
    afterwards. Raises UsageError (another manifest's marker, a place that can't be written),
    TemporaryError (full disk).
    """
    pointer = run_folder.parent / POINTER
    if run_folder.name == POINTER:
        raise UsageError(
            f"A run can't be called {POINTER!r}, the name of the pointer. Received: {run_folder}"
        )
    if not is_finished(run_folder):
        _finish(run_folder)
    write_text(pointer, f"{run_folder.name}\n")
    return pointer


def is_finished(run_folder: Path) -> bool:
    """Return whether the run's marker is there and holds the digest of the manifest that is there."""
    try:
        marker = (run_folder / MARKER).read_text(encoding="utf-8").strip()
        return marker == _digest((run_folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False


def is_pointer_older(run_folder: Path) -> bool:
    """Return whether the pointer was last moved before the finished run at `run_folder` got its marker."""
    pointer = run_folder.parent / POINTER
    if latest_run(run_folder.parent) is None:
        return True
    return pointer.stat().st_mtime_ns < (run_folder / MARKER).stat().st_mtime_ns


def latest_run(output: Path) -> Path | None:
    """Return the run that the pointer in `output` names; None if there is no pointer, or no such run."""
    try:
        name = (output / POINTER).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    run = output / name
    is_plain = name not in ("", "..") and Path(name).name == name
    return run if is_plain and run.is_dir() else None


def verify(run_folder: Path) -> list[str]:
    """Return what is wrong with a published run, one sentence each; none when all is well.

    Missing and extra files, other sizes, other digests, a marker that isn't the manifest's.
    """
    try:
        listed = _read_manifest(run_folder / MANIFEST)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} can't be read: {error}"]
    problems = [] if is_finished(run_folder) else [f"{MARKER} is missing or of another manifest"]
    present = set(_names(run_folder))
    problems += [f"{name} is missing" for name in sorted(listed.keys() - present)]
    problems += [f"{name} is not in {MANIFEST}" for name in sorted(present - listed.keys())]
    for name in sorted(present & listed.keys()):
        problems += _differences(run_folder, listed[name])
    return problems


def require_unchanged(run_folder: Path) -> None:
    """Raise UsageError for a run that was published and whose manifest is another one now."""
    if (run_folder / MARKER).exists() and not is_finished(run_folder):
        # Made by someone who saw another manifest: to replace either would hide that.
        raise UsageError(
            f"The run has a {MARKER} that doesn't belong to its {MANIFEST}, so something changed it after it "
            f"was published. Choose another run name. Received: {run_folder}"
        )


def _finish(run_folder: Path) -> None:
    marker = run_folder / MARKER
    require_unchanged(run_folder)
    records = [_record(run_folder, name) for name in _names(run_folder)]
    manifest = {"schema": SCHEMA, "run": run_folder.name, "files": [asdict(record) for record in records]}
    write_json(run_folder / MANIFEST, manifest)
    digest = _digest((run_folder / MANIFEST).read_bytes())
    if not create_bytes(marker, f"{digest}\n".encode()) and not is_finished(run_folder):
        raise UsageError(f"Another process published this run meanwhile. Received: {run_folder}")


def _names(run_folder: Path) -> list[str]:
    """Return the names of all files below the run folder that belong to the run, sorted."""
    names = []
    for folder, _, files in os.walk(run_folder):
        paths = [Path(folder, file) for file in files]
        names += [path.relative_to(run_folder).as_posix() for path in paths if not is_temporary(path)]
    return sorted(name for name in names if name not in (MANIFEST, MARKER))


def _record(run_folder: Path, name: str) -> FileRecord:
    path = run_folder / name
    with explained(path, "read"):
        return FileRecord(name, path.stat().st_size, hash_file(path)["sha256"])


def _read_manifest(path: Path) -> dict[str, FileRecord]:
    manifest = json.loads(path.read_bytes())
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"its schema is {manifest['schema']!r}, and this version reads {SCHEMA}")
    records = [FileRecord(**record) for record in manifest["files"]]
    return {record.path: record for record in records}


def _differences(run_folder: Path, listed: FileRecord) -> list[str]:
    try:
        found = _record(run_folder, listed.path)
    except UsageError as error:
        return [str(error)]
    if found.size != listed.size:
        return [f"{listed.path} has {found.size:,} bytes instead of {listed.size:,}"]
    return [] if found.sha256 == listed.sha256 else [f"{listed.path} has other contents than were published"]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
