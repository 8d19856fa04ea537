"""Retention of finished runs (publish.keep_runs), and removal of one run on request.

A run is deleted in two steps. First it is withdrawn (retired), so that no process starts to read it. At least
an hour later its files are removed, so that earlier readers can finish. Unfinished runs are not touched.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from trainer.errors import TemporaryError, UsageError
from trainer.release.audit_log import earlier_champions
from trainer.runs import lease_of
from trainer.runs.champion import read_pointer
from trainer.runs.files import FINISHED_FILES, STARTS
from trainer.runs.marker import is_marker_of
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
from trainer.storage.lease import Lease, take_lease
from trainer.storage.store import Store


@contextmanager
def run_lease(output: Store, name: str, on_wait: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease of a run. Raises TemporaryError if another process holds it."""
    lease = take_lease(output, lease_of(name), on_wait)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def run_lease_if_free(
    output: Store, name: str, on_wait: Callable[[str], None] = lambda message: None
) -> Iterator[Lease | None]:
    """Hold the lease of a run; yields None if another process holds it."""
    with ExitStack() as stack:
        lease = None
        with suppress(TemporaryError):
            lease = stack.enter_context(run_lease(output, name, on_wait))
        yield lease


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
            "The champion cannot be deleted.",
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
        _withdraw(output, name, lease)
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


def _withdraw(output: Store, name: str, lease: Lease) -> None:
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


READ_SECONDS = 3600.0
"""Seconds between the withdrawal of a run and the removal of its files, for readers that started before."""


@dataclass(frozen=True)
class RetentionResult:
    """Names of the runs that were withdrawn and of those that were removed."""

    retired: tuple[str, ...]
    removed: tuple[str, ...]
    problems: tuple[str, ...] = ()
    """Error messages of runs that could not be withdrawn, restored or removed."""


def keep_newest(
    output: Store,
    count: int,
    read_seconds: float = READ_SECONDS,
    on_wait: Callable[[str], None] = lambda message: None,
) -> RetentionResult:
    """Retire all finished runs except the newest `count`, the champion, its predecessor and the latest.

    Withdrawn runs are removed once `read_seconds` have passed. A withdrawn run that is to be kept again, as
    after a rollback, is restored. A run whose lease another process holds is skipped and handled by the next
    call. `on_wait` receives a message while the lease of another process is watched. Raises UsageError,
    TemporaryError.
    """
    files = [entry.name.partition("/") for entry in output.entries()]
    withdrawn = sorted(name for name, _, file in files if file == RETIRED)
    finished = [name for name in {name for name, _, file in files if file} if is_finished(output.below(name))]
    newest = sorted(finished, key=lambda name: publication_order(output, name), reverse=True)[:count]
    protected = {*newest, *_protected(output)}
    problems: list[str] = []

    def for_each(names: Iterable[str], action: Callable[[str], bool]) -> tuple[str, ...]:
        changed = []
        for name in sorted(names):
            try:
                changed += [name] if action(name) else []
            except UsageError as error:  # continue with the other runs
                problems.append(str(error))
            except TemporaryError as error:
                problems.append(str(error))
                break  # the other runs would wait as long
        return tuple(changed)

    for_each(protected.intersection(withdrawn), lambda name: _restore_if_free(output, name, on_wait))
    retired = for_each(set(finished) - protected, lambda name: _retire(output, name, on_wait))
    due = [name for name in withdrawn if name not in protected and _may_be_due(output, name, read_seconds)]
    removed = for_each(due, lambda name: _remove(output, name, read_seconds, on_wait))
    return RetentionResult(retired, removed, tuple(problems))


def restore_run(output: Store, name: str, on_wait: Callable[[str], None] = lambda message: None) -> bool:
    """Restore a run that was withdrawn, or only half withdrawn by a crash; return whether it is finished.

    Raises TemporaryError if another process works on it.
    """
    if output.find(f"{name}/{RETIRED}") is not None:
        with run_lease(output, name, on_wait) as lease:
            _remove_retired_mark(output, name, lease)
    return is_finished(output.below(name))


def _restore_if_free(output: Store, name: str, on_wait: Callable[[str], None]) -> bool:
    with run_lease_if_free(output, name, on_wait) as lease:
        if lease:
            _remove_retired_mark(output, name, lease)
    return lease is not None


def _protected(output: Store) -> set[str]:
    """Return the champion, the newest earlier champion that was not removed, and the latest run."""
    champion = read_pointer(output).name
    # Whether or not it is finished: the run being checked may just have lost its marker.
    latest = named_run(output.read(POINTER))
    previous = next(
        (run for run, _ in earlier_champions(output, champion) if output.find(f"{run}/{MANIFEST}")), ""
    )
    return {name for name in (champion, previous, latest) if name}


def _retire(output: Store, name: str, on_wait: Callable[[str], None]) -> bool:
    """Withdraw a run; return False if another process holds its lease or a pointer names it by now."""
    with run_lease_if_free(output, name, on_wait) as lease:
        marker = output.read(f"{name}/{MARKER}") if lease else None
        if lease is None or marker is None:
            return False
        lease.require()
        output.write(f"{name}/{RETIRED}", marker.data)
        output.remove(f"{name}/{MARKER}", marker.version)
        # Pointer moves check the run afterwards, and this checks the pointers: one of the two detects a
        # conflict.
        is_kept = True
        try:
            is_kept = name in _protected(output)
        finally:
            if is_kept:
                _remove_retired_mark(output, name, lease)
        return not is_kept


def _remove_retired_mark(output: Store, name: str, lease: Lease) -> None:
    lease.require()
    retired, manifest = (output.read(f"{name}/{file}") for file in (RETIRED, MANIFEST))
    if retired is not None and manifest is not None and is_marker_of(retired, manifest):
        output.create(f"{name}/{MARKER}", retired.data)
    if is_finished(output.below(name)):
        output.remove(f"{name}/{RETIRED}")


def _may_be_due(output: Store, name: str, read_seconds: float) -> bool:
    """Return whether a run may be due for removal by the local clock; the store's clock decides."""
    since = output.written_at(f"{name}/{RETIRED}")
    return since is not None and time.time() - since >= read_seconds / 2


def _remove(output: Store, name: str, read_seconds: float, on_wait: Callable[[str], None]) -> bool:
    """Remove the files of a run that was withdrawn long enough ago; return whether they were removed."""
    with run_lease_if_free(output, name, on_wait) as lease:
        run = output.below(name)
        if lease is None or is_finished(run) or name in _protected(output):
            return False
        # Both times are from the clock of the store.
        since, now = (output.written_at(file) for file in (f"{name}/{RETIRED}", lease_of(name)))
        if since is None or now is None or now - since < read_seconds:
            return False
        remove_files(output, name, lease)
    return True
