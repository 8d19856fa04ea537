"""Whether the run that this process works on is still there.

In: the files of the run on local disk, and its store. Out: nothing, or an error once they were removed, so
that nothing is written that the next start would take for somebody else's files.
"""

from __future__ import annotations

from pathlib import Path

from trainer.exits import TemporaryError
from trainer.run_folder.refusals import SPEC
from trainer.run_folder.starts import STARTS
from trainer.storage.store import Store

_BEGUN = (STARTS, SPEC)
"""What every start leaves first; a run that has neither is gone."""


class Presence:
    """Of one run; only what was there before can be gone."""

    def __init__(self, path: Path, run: Store | None) -> None:
        """`run` is the place in a bucket where the files of `path` are kept too."""
        self._path, self._run = path, run
        self._was_here = self._was_stored = False

    def require(self) -> None:
        """Raise TemporaryError if the files on local disk were removed."""
        is_here = any((self._path / name).exists() for name in _BEGUN)
        if self._was_here and not is_here:
            raise _removed(str(self._path))
        self._was_here = is_here

    def require_stored(self) -> None:
        """Raise TemporaryError if the files in the bucket were removed, or those on local disk."""
        self.require()
        if self._run is None:
            return
        is_stored = any(self._run.find(name) is not None for name in _BEGUN)
        if self._was_stored and not is_stored:
            raise _removed(self._run.uri)
        self._was_stored = is_stored

    def forget(self) -> None:
        """Take it that this process itself removes the run."""
        self._was_here = self._was_stored = False


def _removed(place: str) -> TemporaryError:
    return TemporaryError(
        "The run was removed while it was trained, so training stops. The same command begins it again, from "
        f"its first epoch. Received: neither {' nor '.join(_BEGUN)} in {place}"
    )
