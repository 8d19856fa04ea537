"""Detection of runs that are removed while a process works on them.

Checks the files on local disk and in the store. After a removal an error prevents further writes, which
the next start would mistake for files that do not belong to a run.
"""

from __future__ import annotations

from pathlib import Path

from trainer.errors import TemporaryError
from trainer.runs.attempts import STARTS
from trainer.runs.validate import SPEC
from trainer.storage.store import Store

_BEGUN = (STARTS, SPEC)
"""Files that every start writes first; a run with neither has been removed."""


class Presence:
    """Presence check for one run; it reports only files that an earlier check has seen."""

    def __init__(self, path: Path, run: Store | None) -> None:
        """`run` is the copy of `path` in a bucket; None if the output is on disk."""
        self._path, self._run = path, run
        self._was_here = self._was_stored = False

    def require(self) -> None:
        """Raise TemporaryError if the files on local disk were removed."""
        # Read first: while another thread restores the files, they may appear between the two statements.
        was_here = self._was_here
        if any((self._path / name).exists() for name in _BEGUN):
            self._was_here = True
        elif was_here:
            raise _removed(str(self._path))

    def require_stored(self) -> None:
        """Raise TemporaryError if the files on local disk or in the bucket were removed."""
        self.require()
        if self._run is None:
            return
        was_stored = self._was_stored
        if any(self._run.find(name) is not None for name in _BEGUN):
            self._was_stored = True
        elif was_stored:
            raise _removed(self._run.uri)

    def forget(self) -> None:
        """Stop checking, because this process is about to remove the run itself."""
        self._was_here = self._was_stored = False


def _removed(place: str) -> TemporaryError:
    return TemporaryError(
        "The run was removed while it was trained, so training stops. The same command begins it again, from "
        "its first epoch.",
        received=f"neither {' nor '.join(_BEGUN)} in {place}",
    )
