"""Which runs of an output stay, and what becomes of the others.

In: the store of all runs, and how many of the newest finished ones stay. Out: what was retired and what
was removed. A run goes in two steps: first it is withdrawn, so that nobody begins to read it, and no sooner
than an hour later its files are removed, so that whoever was reading it is done. What is unfinished is left
alone.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from trainer.champion import read_pointer
from trainer.publish import MANIFEST, MARKER, RETIRED, is_finished, latest_run
from trainer.release.held import held_if_free
from trainer.release.records import champion_before, published_at
from trainer.run_folder import lease_of
from trainer.storage.folder import FolderStore
from trainer.storage.store import Store

READ_SECONDS = 3600.0
"""How long a run that is withdrawn stays for those who began to read it before."""


@dataclass(frozen=True)
class Gone:
    """The names of the runs that were withdrawn, and of those that were removed."""

    retired: tuple[str, ...]
    removed: tuple[str, ...]


def keep_newest(output: Store, count: int, read_seconds: float = READ_SECONDS) -> Gone:
    """Retire all finished runs but the newest `count`, the champion and the one before it; remove old ones.

    A withdrawn run that is one of them again, as after a rollback, comes back. A run that another process
    works on, or whose turn it is at the same moment, is passed over: the next one that looks sees to it.
    Raises UsageError, TemporaryError.
    """
    names = {name for entry in output.entries() for name, _, file in [entry.name.partition("/")] if file}
    leaving = [name for name in sorted(names) if output.find(f"{name}/{RETIRED}") is not None]
    removed = [name for name in leaving if _remove(output, name, read_seconds)]
    finished = [name for name in names.difference(removed) if is_finished(output.below(name))]
    newest = sorted(finished, key=lambda name: _published_at(output, name), reverse=True)[:count]
    kept = {*newest, *_protected(output)}
    retired = [name for name in sorted(set(finished) - kept) if _retire(output, name)]
    for name in sorted(kept.intersection(leaving)):
        _bring_back(output, name)
    return Gone(tuple(retired), tuple(removed))


def _protected(output: Store) -> set[str]:
    champion = read_pointer(output).name
    return {name for name in (champion, champion_before(output, champion), latest_run(output)) if name}


def _published_at(output: Store, name: str) -> tuple[str, float]:
    """Return when a run was published, as its manifest says: in a copy of the output all files are new."""
    return published_at(output, name), output.written_at(f"{name}/{MARKER}") or 0.0


def _retire(output: Store, name: str) -> bool:
    """Withdraw a run; return False if it became one to keep meanwhile."""
    with held_if_free(output, name) as lease:
        marker = output.read(f"{name}/{MARKER}") if lease else None
        if marker is None:
            return False
        output.write(f"{name}/{RETIRED}", marker.data)
        output.remove(f"{name}/{MARKER}", marker.version)
        # Who moves a pointer looks at the run afterwards, as this does at the pointers: one of both sees it.
        if name not in _protected(output):
            return True
        _unmark(output, name)
    return False


def _bring_back(output: Store, name: str) -> None:
    """Let a run that was withdrawn, or that a crash left half so, be a finished one."""
    with held_if_free(output, name) as lease:
        if lease:
            _unmark(output, name)


def _unmark(output: Store, name: str) -> None:
    mark = output.read(f"{name}/{RETIRED}")
    if mark is not None:
        output.create(f"{name}/{MARKER}", mark.data)
    if is_finished(output.below(name)):
        output.remove(f"{name}/{RETIRED}")


def _remove(output: Store, name: str, read_seconds: float) -> bool:
    """Remove the files of a run that was withdrawn long enough ago; return whether it was."""
    with held_if_free(output, name) as lease:
        run = output.below(name)
        if lease is None or is_finished(run) or name in _protected(output):
            return False
        # Both by the clock of the place that keeps them.
        since, now = (output.written_at(each) for each in (f"{name}/{RETIRED}", lease_of(name)))
        if since is None or now is None or now - since < read_seconds:
            return False
        # Cut short at any moment it is a run that was withdrawn.
        for file in sorted((entry.name for entry in run.entries()), key=_last_the_mark):
            lease.require()
            run.remove(file)
        if isinstance(output, FolderStore):
            lease.require()
            shutil.rmtree(output.root / name, ignore_errors=True)
    return True


def _last_the_mark(file: str) -> int:
    return {MANIFEST: -1, RETIRED: 1}.get(file, 0)
