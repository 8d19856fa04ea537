"""Removal of one run on request, finished or not."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from trainer.errors import UsageError
from trainer.release.lock import run_lease
from trainer.runs.attempts import STARTS
from trainer.runs.champion import read_pointer
from trainer.runs.files import FINISHED_FILES
from trainer.runs.publish import (
    MANIFEST,
    MARKER,
    POINTER,
    RETIRED,
    is_finished,
    named_run,
    publication_order,
)
from trainer.storage.folder import FolderStore
from trainer.storage.lease import Lease
from trainer.storage.store import Store

_REMOVAL_ORDER = {MANIFEST: -1, STARTS: 1, RETIRED: 2}
"""Order of the files, 0 for all others: an interrupted removal leaves a run that can be removed again."""


_RUN_FILES = {*FINISHED_FILES, "error.txt", "profile", MANIFEST, MARKER, RETIRED}


def require_removable(output: Store, name: str) -> None:
    """Raise UsageError if `name` is no run, is the champion, a link, or contains files of others."""
    run = output.below(name)
    if all(run.find(file) is None for file in (STARTS, MANIFEST, MARKER, RETIRED)):
        raise UsageError(
            "There is no such run.", f"List the runs with: trainer runs {output.uri}", received=run.uri
        )
    if isinstance(output, FolderStore) and (output.root / name).is_symlink():
        raise UsageError(
            "The run is a symbolic link to another folder.",
            "Delete the link with `rm`, or the run by its own name.",
            received=run.uri,
        )
    names = {entry.name.partition("/")[0] for entry in run.entries()}
    if foreign := sorted(names - _RUN_FILES):
        raise UsageError(
            "The folder of the run contains files that do not belong to a run.",
            "Move them to another folder.",
            received=f"{', '.join(foreign[:3])} in {run.uri}",
        )
    if read_pointer(output).name == name:
        raise UsageError(
            "The champion can't be deleted.",
            "Promote another run first, or restore the previous champion with `trainer rollback`.",
            received=run.uri,
        )


def delete_run(output: Store, name: str, on_wait: Callable[[str], None] = lambda message: None) -> None:
    """Delete the files of a run at once; `latest` then names the newest of the other finished runs.

    Processes that read the run may fail. `on_wait` receives a message while the lease of another process is
    watched. Raises UsageError for the champion, TemporaryError if another process works on the run.
    """
    require_removable(output, name)
    with run_lease(output, name, on_wait) as lease:
        _retire(output, name, lease)
        _move_latest(output, name)
        remove_files(output, name, lease)


def remove_files(output: Store, name: str, lease: Lease) -> None:
    """Remove all files of a withdrawn or unfinished run; after an interruption it can be called again."""
    run = output.below(name)
    for file in sorted((entry.name for entry in run.entries()), key=lambda file: _REMOVAL_ORDER.get(file, 0)):
        lease.require()
        run.remove(file)
    if isinstance(output, FolderStore):
        lease.require()
        shutil.rmtree(output.root / name, ignore_errors=True)


def _retire(output: Store, name: str, lease: Lease) -> None:
    """Withdraw a finished run, unless it has become the champion in the meantime."""
    marker = output.read(f"{name}/{MARKER}")
    if marker is None:
        return
    lease.require()
    output.write(f"{name}/{RETIRED}", marker.data)
    output.remove(f"{name}/{MARKER}", marker.version)
    try:
        # A promotion checks the run after it has moved the pointer, and this checks the pointer.
        require_removable(output, name)
    except UsageError:
        output.create(f"{name}/{MARKER}", marker.data)
        output.remove(f"{name}/{RETIRED}")
        raise


def _move_latest(output: Store, name: str) -> None:
    """Point `latest` to the newest of the other finished runs, if it names the run `name`."""
    pointer = output.read(POINTER)
    if pointer is None or named_run(pointer) != name:
        return
    others = [other for other in output.folders() if other != name and is_finished(output.below(other))]
    newest = max(others, key=lambda other: publication_order(output, other), default=None)
    if newest is None:
        output.remove(POINTER, pointer.version)
    else:
        output.swap(POINTER, f"{newest}\n".encode(), pointer.version)
