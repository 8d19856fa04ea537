"""A run to a published run: manifest, marker, pointer, in that order.

In: the store of all runs, the name of one that is written, and its files on local disk. Out:
`MANIFEST.json` (every file, its size and sha256), `_SUCCESS` (the manifest's sha256, made by one
process only) and, beside the runs, `latest` (the name of the run). A crash between two of
them leaves a run that isn't finished, or a pointer to the run before, never a lie.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer.exits import TemporaryError, UsageError
from trainer.manifest import SCHEMA, FileRecord, difference, next_sequence, read_manifest, sequence_of
from trainer.marker import is_marker_of, marker_of, summary_labels
from trainer.spec.schema import CHAMPION, RUN_NAME
from trainer.storage.checksums import as_text, file_crc32c
from trainer.storage.local import explained, hash_file, is_temporary, sync_file
from trainer.storage.objects import read_object
from trainer.storage.store import Content, Entry, Store, open_store

MANIFEST = "MANIFEST.json"
MARKER = "_SUCCESS"
RETIRED = "_RETIRED"
"""In the place of the marker, with its bytes: the run is withdrawn, and will be removed."""
POINTER = "latest"
_AT_A_TIME = 8


def publish(output: Store, name: str, folder: Path, require: Callable[[], None] = lambda: None) -> str:
    """Make the run `name` of `output`, whose files are those of the local `folder`, finished and the latest.

    Returns the run that the pointer names now: another one only if that was published at the same time.

    A run that is already finished keeps its manifest and marker, and only the pointer moves:
    so a publication that a crash cut short can be repeated. Nothing may write to the run
    afterwards. `require` is asked before each step, and raises if the run is another process's
    by now. Raises UsageError (another manifest's marker, a place that can't be written),
    TemporaryError (full disk, retries used up).
    """
    run = output.below(name)
    if name == POINTER:
        raise UsageError(f"A run can't be called {POINTER!r}, the name of the pointer. Received: {run.uri}")
    if not is_finished(run):
        _finish(output, name, folder, require)
    require()
    return move_pointer(output, name)


def is_finished(run: Store) -> bool:
    """Return whether the run's marker is there and holds the digest of the manifest that is there."""
    marker = run.read(MARKER)
    manifest = run.read(MANIFEST) if marker else None
    return marker is not None and manifest is not None and is_marker_of(marker, manifest)


def move_pointer(output: Store, name: str) -> str:
    """Let the pointer name the finished run `name`, unless it names one that was published later.

    Returns the run that it names now.
    """
    while True:
        found = output.read(POINTER)
        other = named_run(found)
        if other == name or (other and _sequence(output, other) > _sequence(output, name)):
            return other
        if output.swap(POINTER, f"{name}\n".encode(), found.version if found else None):
            return name


def latest_run(output: Store) -> str | None:
    """Return the name of the finished run that the pointer of `output` names, None if there is none."""
    found = output.read(POINTER)
    while name := named_run(found):
        if is_finished(output.below(name)):
            return name
        before, found = found, output.read(POINTER)
        if found is None or before is None or found.data == before.data:
            break
        # It moved on meanwhile, and the run that it named was withdrawn.
    return None


def find_run(uri: str) -> Store:
    """Return the store of the run at `uri`, which may end with the name of a pointer: latest, champion.

    Raises UsageError for a pointer that names none.
    """
    parent, name = parent_of(uri)
    if name not in (POINTER, CHAMPION) or os.path.isdir(uri):
        return open_store(uri)
    output = open_store(parent)
    run = latest_run(output) if name == POINTER else named_run(output.read(CHAMPION))
    if not run:
        raise UsageError(f"There is no pointer to a run. Received: {uri}")
    return output.below(run)


def parent_of(uri: str) -> tuple[str, str]:
    """Return the place that holds `uri`, and its name there."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    return parent or ("/" if uri.startswith("/") else "."), name


def verify(run: Store) -> list[str]:
    """Return what is wrong with a published run, one sentence each; none when all is well.

    Missing and extra files, other sizes, other digests, a marker that isn't the manifest's. Raises
    TemporaryError if a file can't be read at this time.
    """
    manifest = run.read(MANIFEST)
    if manifest is None:
        return [f"{MANIFEST} is missing"]
    try:
        listed = read_manifest(manifest.data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{MANIFEST} can't be read: {error}"]
    marker = run.read(MARKER)
    is_whole = marker is not None and is_marker_of(marker, manifest)
    problems = [] if is_whole else [f"{MARKER} is missing or of another manifest"]
    present = {entry.name: entry for entry in run.entries() if entry.name not in (MANIFEST, MARKER)}
    problems += [f"{name} is missing" for name in sorted(listed.keys() - present.keys())]
    problems += [f"{name} is not in {MANIFEST}" for name in sorted(present.keys() - listed.keys())]
    both = sorted(present.keys() & listed.keys())
    pool = ThreadPoolExecutor(_AT_A_TIME)
    try:
        found = pool.map(lambda name: difference(run, listed[name], present[name]), both)
        return problems + [each for each in found if each]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after one that can't be read no others are tried


def require_unchanged(run: Store) -> None:
    """Raise UsageError for a run that was published and whose manifest is another one now.

    An empty marker is one that a crash left where files can't be made at one blow; one without any
    manifest is of a process that lost the run while its request was on the way.
    """
    marker = run.read(MARKER)
    if marker is not None and marker.data and run.read(MANIFEST) is not None and not is_finished(run):
        # Made by someone who saw another manifest: to replace either would hide that.
        raise UsageError(
            f"The run has a {MARKER} that doesn't belong to its {MANIFEST}, so something changed it after it "
            f"was published. Choose another run name. Received: {run.uri}"
        )


def _finish(output: Store, name: str, folder: Path, require: Callable[[], None]) -> None:
    """Write manifest and marker, by way of the output: in the run the lock of a swap would be a file more."""
    run = output.below(name)
    require_unchanged(run)
    records = _records(run, folder)
    before = run.read(MANIFEST)
    if is_finished(run):  # by another process, meanwhile
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
            f"Another process is publishing this run; start the same command again to see how it ended. "
            f"Received: {run.uri}"
        )
    require()
    labels = summary_labels(manifest["published"], folder)
    if not run.create(MARKER, marker_of(data), labels) and not is_finished(run):
        # One that was on its way from a process that lost the run: away with it, or the run stays refused.
        _remove_stray_marker(output, name)
        raise TemporaryError(
            f"Another process sent the marker of this run; start the same command again. Received: {run.uri}"
        )


def _remove_stray_marker(output: Store, name: str) -> None:
    """Remove a marker that fits no manifest; in this version only, for a right one may come meanwhile."""
    stray = output.below(name).read(MARKER)
    if stray is not None and not is_finished(output.below(name)):
        output.remove(f"{name}/{MARKER}", stray.version)


def _records(run: Store, folder: Path) -> list[FileRecord]:
    """Return what is published: the files of `folder`, and what else lies in the run.

    That may be a checkpoint of a process which lost the run while its upload was on its way.
    Raises TemporaryError if a file of the folder isn't in the run.
    """
    records = {name: _record(folder, name) for name in _names(folder)}
    present = {entry.name: entry for entry in run.entries() if entry.name not in (MANIFEST, MARKER)}
    for name, record in records.items():
        found = present.get(name)
        if found is None or found.size != record.size or not _is_same(found, folder / name):
            size = found.size if found else "no"
            raise TemporaryError(
                f"A file of the run is not as it was written; start the same command again. "
                f"Received: {run.at(name)} of {size} bytes, written were {record.size}"
            )
    for name in present.keys() - records.keys():
        records[name] = FileRecord(name, present[name].size, run.sha256(name))
    return [records[name] for name in sorted(records)]


def _is_same(found: Entry, path: Path) -> bool:
    """Return whether a file of equal size has the checksum that the store knows, if it knows one."""
    return not found.crc32c or found.crc32c == as_text(file_crc32c(path))


def _names(folder: Path) -> list[str]:
    """Return the names of all files below the run's folder that belong to the run, sorted."""
    names = []
    for parent, _, files in os.walk(folder):
        paths = [Path(parent, file).relative_to(folder) for file in files]
        names += [path.as_posix() for path in paths if not is_temporary(path)]
    return sorted(name for name in names if name not in (MANIFEST, MARKER))


def _record(folder: Path, name: str) -> FileRecord:
    path = folder / name
    with explained(path, "read"):
        # The marker must not outlive, in a power failure, what it speaks of.
        sync_file(path)
        return FileRecord(name, path.stat().st_size, hash_file(path)["sha256"])


def publication_order(output: Store, name: str) -> int:
    """Return a number that is higher for a run that was published later; see `sequence_of`."""
    return sequence_of(read_object(output, f"{name}/{MANIFEST}"))


def _sequence(output: Store, name: str) -> int:
    """Return the place of a finished run in their order; -1 for a run that isn't finished."""
    return publication_order(output, name) if is_finished(output.below(name)) else -1


def _latest_manifest(output: Store) -> dict[str, Any]:
    """Return the manifest of the run that the pointer names; an empty one if there is none."""
    name = named_run(output.read(POINTER))
    return read_object(output, f"{name}/{MANIFEST}") if name else {}


def published_at(output: Store, name: str) -> str:
    """Return when a run was published: ISO 8601, UTC, microseconds, so that the later is the greater text.

    By its manifest, as files have other times in a copy; empty for one that has none.
    """
    return str(read_object(output, f"{name}/{MANIFEST}").get("published", ""))


def named_run(pointer: Content | None) -> str:
    """Return the run that a pointer names; empty if it names none."""
    name = pointer.data.decode("utf-8", "replace").strip() if pointer else ""
    # What a crash of the machine leaves of a file may be anything, such as zeros.
    return name if re.fullmatch(RUN_NAME, name) else ""
