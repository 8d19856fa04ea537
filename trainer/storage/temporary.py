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
from trainer.storage.local import FULL, DiskFullError


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
    except DiskFullError as error:
        if folder not in error.path.parents:
            raise
        raise _full_error(str(parent), error.received) from error
    except OSError as error:
        # The error of a file descriptor has no filename.
        is_below = error.filename is None or folder in Path(os.fsdecode(error.filename)).parents
        if error.errno not in FULL or not is_below:
            raise
        raise _full_error(str(parent), error.strerror) from error


def temporary_parent() -> Path:
    """Return the folder for temporary files: TMPDIR if usable, else /tmp or another default.

    Raises TemporaryError if a full disk is the reason that none is usable, otherwise UsageError.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        tried = re.findall(r"'([^']+)'", str(error.strerror))
    full = [path for path in tried if os.path.isdir(path) and os.statvfs(path).f_bavail == 0]
    if full:
        raise _full_error(full[0], os.strerror(errno.ENOSPC))
    raise UsageError(
        "No folder for temporary files is writable.",
        "Set TMPDIR to a writable folder.",
        received=f"{printable(', '.join(tried))}",
    )


def _full_error(folder: str, reason: object) -> TemporaryError:
    return TemporaryError(
        f"The disk of the folder for temporary files is full: {printable(folder)}.",
        "Free some space there, or set TMPDIR to a folder on another disk, then run the same command again.",
        received=reason,
    )
