"""Atomic replacement of whole folders, and removal of the leftovers of killed processes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trainer.storage.fencing import require_right
from trainer.storage.local import is_temporary, sync_folder, translate_errors


def _discard(path: Path) -> None:
    """Remove the leftovers of a crash at `path`. Raises TemporaryError, UsageError."""
    with translate_errors(path, "removed"):
        if path.exists():
            require_right(path)
            shutil.rmtree(path)


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename the complete folder `temporary` to `final`, replacing any existing folder.

    The old folder is first renamed and then deleted, so that no process sees it in part. Raises
    TemporaryError, UsageError.
    """
    old = final.with_name(f".{final.name}.old.tmp")
    _discard(old)
    with translate_errors(final):
        require_right(final)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        sync_folder(final.parent)
    _discard(old)


def remove_leftovers(folder: Path) -> None:
    """Remove the partially written files and folders that killed processes left below `folder`."""
    with translate_errors(folder, "cleared"):
        for parent, folders, files in os.walk(folder):
            for name in filter(lambda name: is_temporary(Path(name)), files):
                Path(parent, name).unlink(missing_ok=True)
            for name in filter(lambda name: is_temporary(Path(name)), folders):
                shutil.rmtree(Path(parent, name))
            folders[:] = [name for name in folders if not is_temporary(Path(name))]
