"""Integrity check of a published run against its manifest.

It runs before a model is loaded or becomes the champion, and raises a DataError with the first file that
differs. `trainer.runs.publish.verify` lists all differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from trainer.errors import DataError
from trainer.runs.manifest import FileRecord, difference, read_manifest
from trainer.runs.marker import is_marker_of
from trainer.runs.publish import MANIFEST, MARKER, RETIRED
from trainer.storage.folder import FolderStore
from trainer.storage.store import Entry, Store

MODEL = "model"
"""Folder of a run's SavedModel."""
_DECISION_FILES = frozenset({"predictions.csv", "metrics.json", "spec.yaml", "dataset.json", "images.json"})
"""Files on which a release decision is based."""


def published_files(run: Store) -> dict[str, FileRecord] | None:
    """Return the files in the manifest of a finished or withdrawn run, by path; None for any other run.

    Raises DataError if the manifest is missing, unreadable, or not the published one.
    """
    marker, manifest = run.read(MARKER), run.read(MANIFEST)
    seal = marker if marker is not None and marker.data.strip() else run.read(RETIRED)
    if seal is None or (manifest is None and marker is None):
        return None  # not finished, or about to be removed
    if manifest is None:
        raise _changed(run, f"{MANIFEST} is missing")
    if not is_marker_of(seal, manifest):
        raise _changed(run, f"{MANIFEST} is not the one that was published")
    try:
        return read_manifest(manifest.data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _changed(run, f"{MANIFEST} can't be read: {str(error)[:200]}") from None


def require_as_published(run: Store, digests: bool = True) -> None:
    """Raise DataError if a file of a published run is missing or its size differs from the manifest.

    With `digests`, the SHA-256 of the model's files and of those that a release decision is based on must
    match too. Other files, such as checkpoints, are not read, because that takes too long. Unpublished runs
    pass.
    """
    listed = published_files(run)
    if listed is not None:
        _require_equal(run, run, "", listed, lambda name: digests and _is_digested(name))


def _is_digested(name: str) -> bool:
    return name.startswith(f"{MODEL}/") or name in _DECISION_FILES


def require_published_model(run: Store, folder: Path) -> None:
    """Raise DataError unless the local `folder` contains exactly the published model of `run`."""
    listed, prefix = published_files(run) or {}, f"{MODEL}/"
    model = {
        name.removeprefix(prefix): replace(record, path=name.removeprefix(prefix))
        for name, record in listed.items()
        if name.startswith(prefix)
    }
    _require_equal(run, FolderStore(folder), prefix, model, lambda name: True)


def _require_equal(
    run: Store,
    store: Store,
    prefix: str,
    listed: Mapping[str, FileRecord],
    is_digested: Callable[[str], bool],
) -> None:
    """Raise DataError if `store`, the files of `run` below `prefix`, differs from `listed`."""
    present = {entry.name: entry for entry in store.entries()}
    for name, record in sorted(listed.items()):
        if problem := _problem(store, record, present.get(name), is_digested(name)):
            raise _changed(run, f"{prefix}{problem}")
    for name in sorted(present.keys() - listed.keys()):
        if is_digested(name) and name not in _DECISION_FILES:
            raise _changed(run, f"{prefix}{name} is not in {MANIFEST}")


def _problem(store: Store, record: FileRecord, entry: Entry | None, is_digested: bool) -> str:
    if entry is None:
        return f"{record.path} is missing"
    if is_digested or entry.size != record.size:
        return difference(store, record, entry)
    return ""


def _changed(run: Store, problem: str) -> DataError:
    return DataError(
        "The run differs from its published state, so it is not used.",
        "Run `trainer verify RUN` to list the differences, then restore these files or train again.",
        received=f"{problem} in {run.uri}",
    )
