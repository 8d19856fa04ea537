"""Temporary folders, with an error that names the disk if it is full.

Python's tempfile module chooses the parent folder, for example TMPDIR.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import TemporaryError, UsageError
from trainer.sanitize import printable
from trainer.storage.local import FULL


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty temporary folder, which is removed at the end of the block.

    Raises TemporaryError if its disk is full, also for writes of the block, and UsageError if no folder for
    temporary files is writable.
    """
    parent = folder = temporary_parent()
    try:
        with tempfile.TemporaryDirectory(dir=parent) as name:
            folder = Path(name)
            yield folder
    except (OSError, TemporaryError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in FULL or not _is_below(error, folder):
            raise
        raise _full(str(parent), cause.strerror) from error


def temporary_parent() -> Path:
    """Return the folder for temporary files: TMPDIR if usable, else /tmp or another default.

    Raises TemporaryError if a full disk is the reason that none is usable, otherwise UsageError.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        tried = re.findall(r"'([^']+)'", str(error.strerror))
    full = [each for each in tried if os.path.isdir(each) and os.statvfs(each).f_bavail == 0]
    if full:
        raise _full(full[0], os.strerror(errno.ENOSPC))
    raise UsageError(
        "There is no folder for temporary files that can be written; set TMPDIR to one.",
        received=f"{printable(', '.join(tried))}",
    )


def _is_below(error: OSError | TemporaryError, folder: Path) -> bool:
    """Return whether the error is about a file below `folder`. An OSError without a filename counts."""
    if isinstance(error, TemporaryError):
        return str(folder) in str(error)
    return error.filename is None or folder in Path(os.fsdecode(error.filename)).parents


def _full(folder: str, reason: str | None) -> TemporaryError:
    return TemporaryError(
        f"The disk of the folder for temporary files is full: {printable(folder)}. Free some space there, or "
        f"set TMPDIR to a folder on another disk, and run the same command again.",
        received=reason,
    )
