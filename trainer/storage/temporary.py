"""Temporary folders, with an error that names their disk where it is full.

In: nothing; TMPDIR is read by Python's tempfile. Out: an empty folder that is removed afterwards.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.exits import TemporaryError, UsageError
from trainer.printable import printable

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder of this process's own; it is removed at the end of the block.

    Raises TemporaryError if its disk is full, also where the block writes to it; UsageError if there is no
    place for it.
    """
    parent = folder = temporary_parent()
    try:
        with tempfile.TemporaryDirectory(dir=parent) as name:
            folder = Path(name)
            yield folder
    except (OSError, TemporaryError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in _FULL or not _is_below(error, folder):
            raise
        raise _full(str(parent), cause.strerror) from error


def temporary_parent() -> Path:
    """Return the folder for temporary files: TMPDIR if that is usable, else /tmp or another usual one.

    Raises TemporaryError if there is none because a disk is full, UsageError if none can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        # "No usable temporary directory found in ['/tmp', '/var/tmp', ...]"
        tried = re.findall(r"'([^']+)'", str(error.strerror))
    full = [each for each in tried if os.path.isdir(each) and os.statvfs(each).f_bavail == 0]
    if full:
        raise _full(full[0], os.strerror(errno.ENOSPC))
    raise UsageError(
        "There is no folder for temporary files that can be written; set TMPDIR to one. "
        f"Received: {printable(', '.join(tried))}"
    )


def _is_below(error: OSError | TemporaryError, folder: Path) -> bool:
    """Return whether the error is of a file below `folder`. An OSError of a write has no name: it is."""
    if isinstance(error, TemporaryError):
        return str(folder) in str(error)
    return error.filename is None or folder in Path(os.fsdecode(error.filename)).parents


def _full(folder: str, reason: str | None) -> TemporaryError:
    return TemporaryError(
        f"The disk of the folder for temporary files is full: {printable(folder)}. Free some space there, or "
        f"set TMPDIR to a folder on another disk, and run the same command again. Received: {reason}"
    )
