"""Write fencing: every write below a guarded folder first checks that this process may still write there.

It prevents a process that was paused from adding, replacing or removing files after another process has taken
over its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Global to the process instead of passed to every writer: a writer without it would overwrite silently.
_GUARDS: dict[Path, Callable[[], None]] = {}


@contextmanager
def guarded(folder: Path, require: Callable[[], None]) -> Iterator[None]:
    """Call `require` before every change below `folder` while the block runs."""
    folder = folder.absolute()
    _GUARDS[folder] = require
    try:
        yield
    finally:
        _GUARDS.pop(folder, None)


def require_right(path: Path) -> None:
    """Raise the error of the guard of any folder above `path`: TemporaryError if the lease is lost."""
    if not _GUARDS:
        return
    absolute = path.absolute()
    for folder, require in list(_GUARDS.items()):
        if folder == absolute or folder in absolute.parents:
            require()
