"""Publication of a run (manifest, marker, pointer, in that order), and its integrity check.

Writes `MANIFEST.json` (every file with its size and SHA-256), `_SUCCESS` (the SHA-256 of the manifest,
created by exactly one process) and, beside the runs, `latest` (the name of the run). A crash between two of
these steps leaves an unfinished run or a pointer to the previous run, never an inconsistent state.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer.errors import DataError, TemporaryError, UsageError
from trainer.runs.manifest import SCHEMA, FileRecord, difference, next_sequence, read_manifest, sequence_of
from trainer.runs.marker import is_marker_of, marker_of, summary_labels
from trainer.spec.schema import CHAMPION, RUN_NAME
from trainer.storage import open_store
from trainer.storage.checksums import as_text, file_crc32c
from trainer.storage.folder import FolderStore
from trainer.storage.local import hash_file, is_temporary, sync_file, translate_errors
from trainer.storage.store import Content, Entry, Store, read_object

MANIFEST = "MANIFEST.json"
MARKER = "_SUCCESS"
RETIRED = "_RETIRED"
"""Replaces the marker, with the same content, once the run is withdrawn and will be removed."""
POINTER = "latest"
_PARALLEL_READS = 8


def publish(output: Store, name: str, folder: Path, require: Callable[[], None] = lambda: None) -> str:
    """Publish the run `name` of `output`, whose files are in the local `folder`, and make it the latest.

    Returns the run that the pointer names now, which differs only if another run was published at the same
    time.

    A run that is already finished keeps its manifest and marker, and only the pointer moves, so an
    interrupted publication can be repeated. Nothing may write to the run afterwards. `require` is called
    before each step, and raises if another process took the run over. Raises UsageError (marker of another
    manifest, output not writable), TemporaryError (full disk, retries exhausted).
    """
    run = output.below(name)
    if name == POINTER:
        raise UsageError(
            f"A run cannot be named {POINTER!r}, because this is the name of the pointer to the newest run.",
            "Choose another --run-name.",
            received=run.uri,
        )
    if not is_finished(run):
        _finish(output, name, folder, require)
    require()
    return move_pointer(output, name)


def is_finished(run: Store) -> bool:
    """Return whether the run has a marker that contains the digest of its manifest."""
    marker = run.read(MARKER)
    manifest = run.read(MANIFEST) if marker else None
    return marker is not None and manifest is not None and is_marker_of(marker, manifest)


def move_pointer(output: Store, name: str) -> str:
    """Point to the finished run `name`, unless the pointer names a run that was published later.

    Returns the run that the pointer names now.
    """
    while True:
        pointer = output.read(POINTER)
        other = named_run(pointer)
        if other == name or (other and _sequence(output, other) > _sequence(output, name)):
            return other
        if output.swap(POINTER, f"{name}\n".encode(), pointer.version if pointer else None):
            return name


def latest_run(output: Store) -> str | None:
    """Return the name of the finished run that the pointer of `output` names, or None."""
    pointer = output.read(POINTER)
    while name := named_run(pointer):
        if is_finished(output.below(name)):
            return name
        before, pointer = pointer, output.read(POINTER)
        if pointer is None or before is None or pointer.data == before.data:
            break
        # The pointer moved in the meantime, and the run that it named before was withdrawn.
    return None


def find_run(uri: str) -> Store:
    """Return the store of the run at `uri`, which may end with the name of a pointer: latest, champion.

    Raises UsageError if the pointer is missing or names no run.
    """
    parent, name = parent_of(uri)
    if name not in (POINTER, CHAMPION) or os.path.isdir(uri):
        return open_store(uri)
    output = open_store(parent)
    run = latest_run(output) if name == POINTER else named_run(output.read(CHAMPION))
    if not run:
        raise UsageError(
            f"There is no {name} run in this output.", "Give the folder of a finished run.", received=uri
        )
    return output.below(run)


def parent_of(uri: str) -> tuple[str, str]:
    """Split a path or URI into its parent and its last component."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    return parent or ("/" if uri.startswith("/") else "."), name


def verify(run: Store) -> list[str]:
    """Return the differences of a published run from its manifest, one sentence each; empty if it is intact.

    Covers missing and extra files, sizes, digests, and a marker of another manifest. Raises TemporaryError if
    a file is temporarily unreadable.
    """
    manifest = run.read(MANIFEST)
    if manifest is None:
        return [f"{MANIFEST} is missing"]
    try:
        listed = read_manifest(manifest.data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    marker = run.read(MARKER)
    has_marker = marker is not None and is_marker_of(marker, manifest)
    problems = [] if has_marker else [f"{MARKER} is missing or does not match {MANIFEST}"]
    present = {entry.name: entry for entry in run.entries() if entry.name not in (MANIFEST, MARKER)}
    problems += [f"{name} is missing" for name in sorted(listed.keys() - present.keys())]
    problems += [f"{name} is not in {MANIFEST}" for name in sorted(present.keys() - listed.keys())]
    both = sorted(present.keys() & listed.keys())
    pool = ThreadPoolExecutor(_PARALLEL_READS)
    try:
        differences = pool.map(lambda name: difference(run, listed[name], present[name]), both)
        return problems + [text for text in differences if text]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an error the remaining files are not read


def require_unchanged(run: Store) -> None:
    """Raise UsageError for a published run whose manifest has changed.

    An empty marker remains after a crash on file systems without atomic creation. A marker without a manifest
    comes from a process whose upload completed after it had lost the run.
    """
    marker = run.read(MARKER)
    if marker is not None and marker.data and run.read(MANIFEST) is not None and not is_finished(run):
        # Replacing the marker or the manifest would hide the change.
        raise UsageError(
            f"{MARKER} of the run doesn't match its {MANIFEST}, so it was changed after publication.",
            "Choose another --run-name.",
            received=run.uri,
        )


def _finish(output: Store, name: str, folder: Path, require: Callable[[], None]) -> None:
    """Write manifest and marker through `output`: a swap in the run's store would leave a lock file there."""
    run = output.below(name)
    require_unchanged(run)
    records = _records(run, folder)
    before = run.read(MANIFEST)
    if is_finished(run):  # another process finished it in the meantime
        return
    require()
    _remove_stray_marker(output, name)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "run": name,
        "sequence": next_sequence(_latest_manifest(output)),
        "published": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        "files": [asdict(record) for record in records],
    }
    data = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    if not output.swap(f"{name}/{MANIFEST}", data, before.version if before else None):
        raise TemporaryError(
            "Another process is publishing this run.", "Run the same command again later.", received=run.uri
        )
    require()
    labels = summary_labels(manifest["published"], folder)
    if not run.create(MARKER, marker_of(data), labels) and not is_finished(run):
        # Late upload of a process that has lost the run; if it stays, the run is rejected from now on.
        _remove_stray_marker(output, name)
        raise TemporaryError(
            "Another process wrote the marker of this run.", "Run the same command again.", received=run.uri
        )


def _remove_stray_marker(output: Store, name: str) -> None:
    """Remove a marker that matches no manifest; only this version, as a valid one may follow."""
    stray = output.below(name).read(MARKER)
    if stray is not None and not is_finished(output.below(name)):
        output.remove(f"{name}/{MARKER}", stray.version)


def _records(run: Store, folder: Path) -> list[FileRecord]:
    """Return the records of all files: those of `folder`, and others that are in the run.

    Others may be a checkpoint of a process that lost the run while its upload was in progress. Raises
    TemporaryError if a file of the folder is missing in the run or differs.
    """
    records = {name: _record(folder, name) for name in _names(folder)}
    present = {entry.name: entry for entry in run.entries() if entry.name not in (MANIFEST, MARKER)}
    for name, record in records.items():
        entry = present.get(name)
        if entry is None or entry.size != record.size or not _is_same(entry, folder / name):
            size = entry.size if entry else "no"
            raise TemporaryError(
                "A file of the run differs from what was written.",
                "Run the same command again.",
                received=f"{run.at(name)} has {size} bytes instead of {record.size}",
            )
    for name in present.keys() - records.keys():
        records[name] = FileRecord(name, present[name].size, run.sha256(name))
    return [records[name] for name in sorted(records)]


def _is_same(entry: Entry, path: Path) -> bool:
    """Return whether a file of equal size has the checksum of the store, if the store has one."""
    return not entry.crc32c or entry.crc32c == as_text(file_crc32c(path))


def _names(folder: Path) -> list[str]:
    """Return the names of all files below the run's folder that belong to the run, sorted."""
    names = []
    for parent, _, files in os.walk(folder):
        paths = [Path(parent, file).relative_to(folder) for file in files]
        names += [path.as_posix() for path in paths if not is_temporary(path)]
    return sorted(name for name in names if name not in (MANIFEST, MARKER))


def _record(folder: Path, name: str) -> FileRecord:
    path = folder / name
    with translate_errors(path, "read"):
        # After a power failure the marker must not exist without the files that it vouches for.
        sync_file(path)
        return FileRecord(name, path.stat().st_size, hash_file(path)["sha256"])


def publication_order(output: Store, name: str) -> int:
    """Return a number that is higher for a run that was published later; see `sequence_of`."""
    return sequence_of(read_object(output, f"{name}/{MANIFEST}"))


def _sequence(output: Store, name: str) -> int:
    """Return the sequence number of a finished run; -1 for a run that is not finished."""
    return publication_order(output, name) if is_finished(output.below(name)) else -1


def _latest_manifest(output: Store) -> dict[str, Any]:
    """Return the manifest of the run that the pointer names; empty if there is none."""
    name = named_run(output.read(POINTER))
    return read_object(output, f"{name}/{MANIFEST}") if name else {}


def published_at(output: Store, name: str) -> str:
    """Return the publication time of a run, in ISO 8601, UTC, with microseconds, so that texts sort by time.

    Read from its manifest, because a copy has other file times; empty if there is none.
    """
    return str(read_object(output, f"{name}/{MANIFEST}").get("published", ""))


def named_run(pointer: Content | None) -> str:
    """Return the run that a pointer names; empty if it names none."""
    name = pointer.data.decode("utf-8", "replace").strip() if pointer else ""
    # After a crash of the machine a file may have arbitrary content, such as zeros.
    return name if re.fullmatch(RUN_NAME, name) else ""


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
        raise _changed(run, f"{MANIFEST} cannot be read: {str(error)[:200]}") from None


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
