"""Run folders: location, exclusive access by one process, and resuming.

A `RunFolder` is new or continues an earlier start. On disk it is a folder of the output; for a bucket it is a
local copy that is mirrored there. A run of another process, a run of another spec and a folder that
is not a run are rejected and left unchanged.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from trainer.data.progress import Progress, SilentProgress
from trainer.errors import TemporaryError, UsageError
from trainer.runs.files import STARTS
from trainer.runs.publish import MANIFEST, MARKER, is_finished, require_unchanged
from trainer.runs.validate import SPEC, require_location, require_not_retired, require_run, require_same_spec
from trainer.spec import RunSpec, dump_spec, has_secret, read_spec, spec_digest
from trainer.storage import open_store
from trainer.storage.folder import FolderStore
from trainer.storage.lease import Lease, take_lease
from trainer.storage.local import (
    ANYONE,
    OWNER,
    guarded,
    prepare_folder,
    remove_leftovers,
    translate_errors,
    write_text,
)
from trainer.storage.locks import private_folder
from trainer.storage.mirror import Mirror, OnBytes
from trainer.storage.store import Store

_SILENT = SilentProgress()
_REWRITTEN = {
    "model", "plots", "events", "report.html", "predictions.csv", "metrics.json", "history.jsonl",
    "timings.json", "rejected.csv",
}  # fmt: skip
"""Files and folders that every start writes again, so they are not downloaded."""


_FIRST_FILES = (STARTS, SPEC)
"""Files that every start writes first; a run with neither has been removed."""


class Presence:
    """Detection of a run that is removed while a process works on it.

    Checks the files on local disk and in the store, and reports only files that an earlier check has seen.
    The error prevents further writes, which the next start would mistake for files that do not belong to a
    run.
    """

    def __init__(self, path: Path, run: Store | None) -> None:
        """`run` is the copy of `path` in a bucket; None if the output is on disk."""
        self._path, self._run = path, run
        self._has_local = self._has_stored = False

    def require(self) -> None:
        """Raise TemporaryError if the files on local disk were removed."""
        # Read first: while another thread restores the files, they may appear between the two statements.
        has_local = self._has_local
        if any((self._path / name).exists() for name in _FIRST_FILES):
            self._has_local = True
        elif has_local:
            raise _removed(str(self._path))

    def require_stored(self) -> None:
        """Raise TemporaryError if the files on local disk or in the bucket were removed."""
        self.require()
        if self._run is None:
            return
        has_stored = self._has_stored
        if any(self._run.find(name) is not None for name in _FIRST_FILES):
            self._has_stored = True
        elif has_stored:
            raise _removed(self._run.uri)

    def forget(self) -> None:
        """Stop checking, because this process is about to remove the run itself."""
        self._has_local = self._has_stored = False


def _removed(location: str) -> TemporaryError:
    return TemporaryError(
        "The run was removed during training.",
        "Run the same command again to train it from the first epoch.",
        received=f"neither {' nor '.join(_FIRST_FILES)} in {location}",
    )


@dataclass(frozen=True)
class RunFolder:
    """One run: its folder in the output and its files on local disk."""

    output: Store
    """Store of all runs."""
    path: Path
    """Folder of the files on local disk; its name is the name of the run."""
    mirror: Mirror
    """Uploads the files to the output."""
    lease: Lease | None
    """None for a finished run and for a process that is not the chief."""
    _cleanup: ExitStack
    presence: Presence | None = None
    """None for a finished run and for a process that is not the chief."""
    finished: bool = False
    """Whether the run was already finished when it was opened."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def newest_checkpoint(self) -> str:
        """File name of the newest checkpoint; empty if there is none."""
        return max((path.name for path in self.checkpoints.glob("step-*.npz")), default="")

    @property
    def model(self) -> Path:
        """Folder of the SavedModel."""
        return self.path / "model"

    def at(self, name: str) -> str:
        """Return the path or URI of a file in the output; of the run itself if `name` is empty."""
        return self.output.at(f"{self.name}/{name}") if name else self.output.below(self.name).uri

    def check_lease(self) -> None:
        """Raise TemporaryError if the run was removed or another process took it over; a cheap check.

        In a bucket, only a loss that is already detected counts. On disk, where this process writes directly
        into the output, the lease is renewed first if the last heartbeat is old.
        """
        if self.presence is not None:
            self.presence.require()
        if self.lease is not None:
            if isinstance(self.output, FolderStore):
                self.lease.require()
            else:
                self.lease.check()

    def require_lease(self) -> None:
        """Raise TemporaryError if the run was removed or another process took it over.

        Renews the lease first if the last heartbeat is old.
        """
        if self.presence is not None:
            self.presence.require()
        if self.lease is not None:
            self.lease.require()

    def keep(self, on_bytes: OnBytes = lambda size: None, is_whole: bool = False) -> None:
        """Upload the files written so far to the output. Raises TemporaryError if the lease is lost.

        Files of an earlier start that this one has not written again are removed only if `is_whole`.
        """
        self.require_lease()
        if self.presence is not None:
            self.presence.require_stored()
        self.mirror.sync(on_bytes, is_whole)

    def discard(self) -> None:
        """Remove a run that has not begun. Raises TemporaryError if another process took it over."""
        self.require_lease()
        if self.presence is not None:
            self.presence.forget()
        _discard(self.output.below(self.name))
        shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """Release the lease; nothing is uploaded or removed afterwards."""
        self._cleanup.close()


def open_run_folder(
    spec: RunSpec,
    now: datetime,
    cache_dir: Path,
    fresh: bool = False,
    progress: Progress = _SILENT,
) -> RunFolder:
    """Return the folder of the run that `spec` describes, and create it if it is new.

    A run of the same spec resumes. A run of another spec is rejected with the keys that differ, unless it has
    no checkpoint yet or `fresh` restarts it. `progress` shows that the lease of another process is being
    watched. Raises UsageError, and TemporaryError for a full disk or a run that another process works on.
    """
    output = open_store(spec.output)
    name = spec.run_name or f"{spec.recipe or 'run'}-{now:%Y%m%d-%H%M%S}-{spec_digest(spec)[:6]}"
    run = output.below(name)
    require_location(output, name)
    require_unchanged(run)
    require_not_retired(run)
    if is_finished(run):
        return _finished(output, name, spec, fresh)
    output.require_writable()
    with ExitStack() as cleanup:
        lease = take_lease(output, lease_of(name), progress.on_message)
        cleanup.callback(lease.release)
        require_not_retired(run)
        if is_finished(run):  # another process finished it in the meantime
            return _finished(output, name, spec, fresh)
        path, mirror, presence = _local(output, name, cache_dir, lease, cleanup)
        cleanup.callback(mirror.close)
        folder = RunFolder(output, path, mirror, lease, cleanup.pop_all(), presence)
    try:
        _prepare(folder, spec, fresh, progress)
    except BaseException:
        folder.release()
        raise
    return folder


def lease_of(name: str) -> str:
    """Return the name of the lease of the run `name`, in the store of all runs."""
    return f".{name}.lease"


def find_finished_run(spec: RunSpec, fresh: bool = False) -> RunFolder | None:
    """Return the folder of the run that `spec` names if it is already finished, else None; changes nothing.

    Also None if the run has no name yet or the output is not accessible: the local disk of the chief is not
    visible to other hosts. Raises UsageError for a finished run of another spec, or if `fresh` is set.
    """
    if spec.run_name is None:
        return None
    try:
        output = open_store(spec.output)
        if not is_finished(output.below(spec.run_name)):
            return None
    except (UsageError, TemporaryError):
        return None  # the process that writes to the output reports the error
    return _finished(output, spec.run_name, spec, fresh)


def _finished(output: Store, name: str, spec: RunSpec, fresh: bool) -> RunFolder:
    require_same_spec(output.below(name), name, spec, finished=True)
    if fresh:
        raise UsageError(
            "The run is finished and published, so --fresh cannot restart it.",
            "Choose another --run-name.",
            received=output.at(name),
        )
    return finished_folder(output, name)


def finished_folder(output: Store, name: str) -> RunFolder:
    """Return the folder of a finished run without a local copy; no file is read."""
    return RunFolder(output, Path(name), Mirror(Path(name), None), None, ExitStack(), finished=True)


def borrow_run_folder(output: str, name: str, cache_dir: Path) -> RunFolder:
    """Return a temporary folder for a process that is not the chief; its files are not uploaded."""
    with ExitStack() as cleanup:
        path = cleanup.enter_context(private_folder(cache_dir / "workers")) / name
        prepare_folder(path)
        return RunFolder(open_store(output), path, Mirror(path, None), None, cleanup.pop_all())


def _local(
    output: Store, name: str, cache_dir: Path, lease: Lease, cleanup: ExitStack
) -> tuple[Path, Mirror, Presence]:
    """Return the local folder, its mirror and its presence check, all valid until `cleanup` closes."""
    if isinstance(output, FolderStore):
        path = output.root / name
        presence = Presence(path, None)

        def require() -> None:
            presence.require()
            lease.require()

        cleanup.enter_context(guarded(path, require))
        return path, Mirror(path, None), presence
    # A private folder: a process that resumes after a long pause may no longer hold the lease of this run.
    local = cleanup.enter_context(private_folder(cache_dir / "runs")) / name
    presence = Presence(local, output.below(name))
    cleanup.enter_context(guarded(local, presence.require))
    return local, Mirror(local, output.below(name), (MANIFEST, MARKER), lease.require), presence


def _prepare(folder: RunFolder, spec: RunSpec, fresh: bool, progress: Progress) -> None:
    """Restore the run's last state into the folder, or initialize the folder."""
    run, path = folder.output.below(folder.name), folder.path
    require_run(run, folder.name)
    if fresh:
        _discard(run)
    if not isinstance(folder.output, FolderStore):
        _fetch(folder, progress)
    if folder.newest_checkpoint:
        require_same_spec(run, folder.name, spec)
    # A late upload of the marker by an earlier process must not match an existing manifest.
    for name in (MANIFEST, MARKER):
        run.remove(name)
    prepare_folder(path)
    remove_leftovers(path)
    if not folder.newest_checkpoint:
        # Name and output are final now. With both in the spec, the same file resumes the run from any folder.
        final = {"run_name": folder.name, "output": _absolute_uri(folder.output)}
        mode = OWNER if has_secret(spec) else ANYONE
        write_text(path / SPEC, dump_spec(spec.model_copy(update=final)), mode)
        # Upload the spec before any other file: a folder without a spec is not recognized as a run.
        folder.keep()
    elif has_secret(read_spec(path / SPEC)):
        with translate_errors(path / SPEC):
            (path / SPEC).chmod(OWNER)  # written by an earlier version, or copied without its mode


def _fetch(folder: RunFolder, progress: Progress) -> None:
    task = progress.start(f"Fetching {folder.at('')}", None, "B")
    try:
        folder.mirror.pull(lambda name: name.partition("/")[0] not in _REWRITTEN, task.advance)
    finally:
        task.finish()


def _discard(run: Store) -> None:
    """Remove the files of an unfinished run, in an order that leaves a valid run if interrupted."""
    names = [entry.name for entry in run.entries()]
    # First the manifest and marker, which could make it finished; then the steps, which refer to the best
    # weights. The spec is last, after the file that identifies the folder as a run.
    ranks = {MANIFEST: 0, MARKER: 1, STARTS: 4, SPEC: 5}
    for name in sorted(names, key=lambda name: ranks.get(name, 3 - name.startswith("checkpoints/step-"))):
        run.remove(name)


def _absolute_uri(output: Store) -> str:
    return str(output.root.absolute()) if isinstance(output, FolderStore) else output.uri
