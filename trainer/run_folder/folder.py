"""Which folder a run has, where it is kept, and that only one process works on it.

In: a spec. Out: a `RunFolder`, new or as an earlier start left it: on disk the folder itself, for
a bucket a local copy that is mirrored there. Another process's run, another spec's run and
what is no run at all are refused and left as they are.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from trainer.data.progress import Progress, SilentProgress
from trainer.exits import TemporaryError, UsageError
from trainer.publish import MANIFEST, MARKER, is_finished, require_unchanged
from trainer.run_folder.presence import Presence
from trainer.run_folder.refusals import SPEC, require_kept, require_place, require_run, require_same_spec
from trainer.run_folder.starts import STARTS
from trainer.spec import RunSpec, dump_spec, has_secret, read_spec, spec_digest
from trainer.storage.folder import FolderStore
from trainer.storage.folders import remove_leftovers
from trainer.storage.guard import guarded
from trainer.storage.lease import Lease, take_lease
from trainer.storage.local import ANYONE, OWNER, explained, prepare_folder, write_text
from trainer.storage.mirror import Mirror
from trainer.storage.shared import private_folder
from trainer.storage.store import Store, open_store
from trainer.storage.transfers import OnBytes

_SILENT = SilentProgress()
_REMADE = {
    "model", "plots", "events", "report.html", "predictions.csv", "metrics.json", "history.jsonl",
    "timings.json", "rejected.csv",
}  # fmt: skip
"""What a start makes anew, and so needn't fetch."""


@dataclass(frozen=True)
class RunFolder:
    """One run: its place in the output, and its files on local disk."""

    output: Store
    """Holds all runs."""
    path: Path
    """The files on local disk; its name is the run's."""
    mirror: Mirror
    """Brings them to the output."""
    lease: Lease | None
    """None for a run that is finished, and for a process that is not the chief."""
    _leave: ExitStack
    presence: Presence | None = None
    """None for a run that is finished, and for a process that is not the chief."""
    finished: bool = False
    """Whether the run was finished when it was opened."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def newest_checkpoint(self) -> str:
        """The name of the newest checkpoint, empty before training begins."""
        return max((path.name for path in self.checkpoints.glob("step-*.npz")), default="")

    @property
    def model(self) -> Path:
        """Where the SavedModel goes."""
        return self.path / "model"

    def at(self, name: str) -> str:
        """Return the path or URI of a file of the run, as a person would find it."""
        return self.output.at(f"{self.name}/{name}") if name else self.output.below(self.name).uri

    def check_lease(self) -> None:
        """Raise TemporaryError if another process took the run over, at little cost.

        In a bucket if that is known already; on disk, where what is written is the other one's, asks.
        """
        if self.presence is not None:
            self.presence.require()
        if self.lease is not None:
            if isinstance(self.output, FolderStore):
                self.lease.require()
            else:
                self.lease.check()

    def require_lease(self) -> None:
        """Raise TemporaryError if the run was removed, or another process took it over.

        Asks the output if that may be.
        """
        if self.presence is not None:
            self.presence.require()
        if self.lease is not None:
            self.lease.require()

    def keep(self, on_bytes: OnBytes = lambda size: None, is_whole: bool = False) -> None:
        """Bring what was written so far to the output, for as long as the run is this process's.

        What an earlier start left there, and this one has not made anew, goes only once it `is_whole`.
        """
        self.require_lease()
        if self.presence is not None:
            self.presence.require_stored()
        self.mirror.sync(on_bytes, is_whole)

    def discard(self) -> None:
        """Remove a run in which nothing was begun. Raises TemporaryError if it is another process's."""
        self.require_lease()
        if self.presence is not None:
            self.presence.forget()
        _discard(self.output.below(self.name))
        shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """Let others work on the run; from now on nothing is sent and nothing removed."""
        self._leave.close()


def open_run_folder(
    spec: RunSpec,
    now: datetime,
    cache_dir: Path,
    fresh: bool = False,
    progress: Progress = _SILENT,
) -> RunFolder:
    """Return the folder of the run that `spec` describes, made if it is new.

    A run of the same spec goes on; one of another spec is refused with the keys that differ,
    unless it hasn't begun or `fresh` says to begin anew. `progress` hears of another process
    that has to be watched. Raises UsageError, TemporaryError (a full disk, a run that
    another process works on).
    """
    output = open_store(spec.output)
    name = spec.run_name or f"{spec.recipe or 'run'}-{now:%Y%m%d-%H%M%S}-{spec_digest(spec)[:6]}"
    run = output.below(name)
    require_place(output, name)
    require_unchanged(run)
    require_kept(run)
    if is_finished(run):
        return _finished(output, name, spec, fresh)
    output.require_writable()
    with ExitStack() as leave:
        lease = take_lease(output, lease_of(name), progress.say)
        leave.callback(lease.release)
        require_kept(run)
        if is_finished(run):  # another process has done it meanwhile
            return _finished(output, name, spec, fresh)
        path, mirror, presence = _local(output, name, cache_dir, lease, leave)
        leave.callback(mirror.close)
        folder = RunFolder(output, path, mirror, lease, leave.pop_all(), presence)
    try:
        _fill(folder, spec, fresh, progress)
    except BaseException:
        folder.release()
        raise
    return folder


def lease_of(name: str) -> str:
    """Return what the lease of the run `name` is called, in the store of all runs."""
    return f".{name}.lease"


def find_finished_run(spec: RunSpec, fresh: bool = False) -> RunFolder | None:
    """Return the folder of the run that `spec` names if that is finished already; changes nothing.

    None too where the run has no name yet, or where this process can't look: on a host's own disk only
    the chief can. Raises UsageError for a finished run of another spec, or one to begin anew.
    """
    if spec.run_name is None:
        return None
    try:
        output = open_store(spec.output)
        if not is_finished(output.below(spec.run_name)):
            return None
    except (UsageError, TemporaryError):
        return None  # whoever has to write there says what is wrong with it
    return _finished(output, spec.run_name, spec, fresh)


def _finished(output: Store, name: str, spec: RunSpec, fresh: bool) -> RunFolder:
    require_same_spec(output.below(name), name, spec, finished=True)
    if fresh:
        raise UsageError(
            f"The run is finished and published, so it is not begun anew; choose another --run-name. "
            f"Received: {output.at(name)}"
        )
    return finished_folder(output, name)


def finished_folder(output: Store, name: str) -> RunFolder:
    """Return the folder of a finished run: its files are where they are, and nothing is read of them."""
    return RunFolder(output, Path(name), Mirror(Path(name), None), None, ExitStack(), finished=True)


def borrow_run_folder(output: str, name: str, cache_dir: Path) -> RunFolder:
    """Return a folder for a process that is not the chief: a place of its own, of which nothing is kept."""
    with ExitStack() as leave:
        path = leave.enter_context(private_folder(cache_dir / "workers")) / name
        prepare_folder(path)
        return RunFolder(open_store(output), path, Mirror(path, None), None, leave.pop_all())


def _local(
    output: Store, name: str, cache_dir: Path, lease: Lease, leave: ExitStack
) -> tuple[Path, Mirror, Presence]:
    """Return where the files of the run are until `leave`, and what brings them to the output."""
    if isinstance(output, FolderStore):
        path = output.root / name
        presence = Presence(path, None)

        def require() -> None:
            presence.require()
            lease.require()

        leave.enter_context(guarded(path, require))
        return path, Mirror(path, None), presence
    # A folder of this process alone: one that was paused for long may not be the only one at this run.
    local = leave.enter_context(private_folder(cache_dir / "runs")) / name
    presence = Presence(local, output.below(name))
    leave.enter_context(guarded(local, presence.require))
    return local, Mirror(local, output.below(name), (MANIFEST, MARKER), lease.require), presence


def _fill(folder: RunFolder, spec: RunSpec, fresh: bool, progress: Progress) -> None:
    """Bring the folder to where the run was left, or to its beginning."""
    run, path = folder.output.below(folder.name), folder.path
    require_run(run, folder.name)
    if fresh:
        _discard(run)
    if not isinstance(folder.output, FolderStore):
        _fetch(folder, progress)
    if folder.newest_checkpoint:
        require_same_spec(run, folder.name, spec)
    # A marker that an earlier process sent, and that arrives only now, must find no manifest that it fits.
    for name in (MANIFEST, MARKER):
        run.remove(name)
    prepare_folder(path)
    remove_leftovers(path)
    if not folder.newest_checkpoint:
        # Name and place are settled: written down, the same file continues the same run from anywhere.
        settled = {"run_name": folder.name, "output": _absolute(folder.output)}
        mode = OWNER if has_secret(spec) else ANYONE
        write_text(path / SPEC, dump_spec(spec.model_copy(update=settled)), mode)
        # Before anything else is there: what has no spec is no run.
        folder.keep()
    elif has_secret(read_spec(path / SPEC)):
        with explained(path / SPEC):
            (path / SPEC).chmod(OWNER)  # an earlier version, or a copy, left it to anyone


def _fetch(folder: RunFolder, progress: Progress) -> None:
    task = progress.start(f"Fetching {folder.at('')}", None, "B")
    try:
        folder.mirror.pull(lambda name: name.partition("/")[0] not in _REMADE, task.advance)
    finally:
        task.finish()


def _discard(run: Store) -> None:
    """Remove the files of an unfinished run; cut short at any moment, it is still the old run or none."""
    names = [entry.name for entry in run.entries()]
    # First what could make it finished, then the steps, which speak of the best weights; the spec last,
    # after what shows that this is a run.
    ranks = {MANIFEST: 0, MARKER: 1, STARTS: 4, SPEC: 5}
    for name in sorted(names, key=lambda name: ranks.get(name, 3 - name.startswith("checkpoints/step-"))):
        run.remove(name)


def _absolute(output: Store) -> str:
    return str(output.root.absolute()) if isinstance(output, FolderStore) else output.uri
