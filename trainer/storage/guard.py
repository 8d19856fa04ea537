"""The right to write below a folder, asked at the last moment before each file there changes.

In: a folder, and what raises once it is another process's. Out: nothing below it is replaced, added to
or removed by a process that was paused for so long that another one took its work over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Of the whole process, not handed to every writer: one that was forgotten would overwrite in silence.
_GUARDS: dict[Path, Callable[[], None]] = {}


@contextmanager
def guarded(folder: Path, require: Callable[[], None]) -> Iterator[None]:
    """Within this block, let `require` be asked before anything below `folder` changes."""
    folder = folder.absolute()
    _GUARDS[folder] = require
    try:
        yield
    finally:
        _GUARDS.pop(folder, None)


def require_right(path: Path) -> None:
    """Raise what the guard of a folder above `path` raises, TemporaryError if another process has it."""
    if not _GUARDS:
        return
    absolute = path.absolute()
    for folder, require in list(_GUARDS.items()):
        if folder == absolute or folder in absolute.parents:
            require()
