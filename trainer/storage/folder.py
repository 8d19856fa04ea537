"""A folder on local disk as a `Store`.

Compare-and-swap uses a lock file whose lock ends with its process. It is therefore atomic only among
processes that use this class.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from trainer.errors import TemporaryError, UsageError
from trainer.storage.local import (
    create_bytes,
    hash_file,
    is_temporary,
    prepare_folder,
    replacing,
    translate_errors,
    write_bytes,
)
from trainer.storage.locks import exclusive
from trainer.storage.store import NO_LABELS, Content, Entry

_LOCK = ".swap.lock"


class FolderStore:
    """The files below `root`; the folder is created by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        """The path of the folder."""
        return str(self.root)

    def below(self, prefix: str) -> FolderStore:
        """Return the store of the folder `prefix` below this one."""
        return FolderStore(self._path(prefix))

    def at(self, name: str) -> str:
        """Return the path of `name`."""
        return str(self._path(name))

    def read(self, name: str) -> Content | None:
        """Return the content of `name`; its version is its SHA-256."""
        path = self._path(name)
        with translate_errors(path, "read"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None
        return Content(data, _digest(data))

    def find(self, name: str) -> Entry | None:
        """Return the size and version of `name`; the version is its modification time and inode."""
        path = self._path(name)
        with translate_errors(path, "read"):
            return _entry(path, name)

    def written_at(self, name: str) -> float | None:
        """Return the modification time of `name`, by the clock of the file system."""
        path = self._path(name)
        with translate_errors(path, "read"):
            status = _status(path)
        return status.st_mtime if status else None

    def write(self, name: str, data: bytes) -> None:
        """Write `data` to `name`."""
        write_bytes(self._path(name), data)

    def create(self, name: str, data: bytes, labels: Mapping[str, str] = NO_LABELS) -> bool:
        """Write `data` only if `name` does not exist; `labels` are dropped: files have no metadata."""
        return create_bytes(self._path(name), data)

    def swap(self, name: str, data: bytes, version: str | None) -> str | None:
        """Write `data` only if the version of `name` is `version`; return the new version, else None."""
        with exclusive(self.root / _LOCK):
            current = self.read(name)
            if (current and current.version) != version:
                return None
            self.write(name, data)
        return _digest(data)

    def remove(self, name: str, version: str | None = None) -> None:
        """Remove `name`; with `version`, only if that is its version."""
        path = self._path(name)
        if version is not None:
            with exclusive(self.root / _LOCK):
                current = self.read(name)
                if current is not None and current.version == version:
                    self.remove(name)
            return
        with translate_errors(path, "removed"):
            path.unlink(missing_ok=True)

    def entries(self, prefix: str = "") -> list[Entry]:
        """Return the files whose names start with `prefix`, without the lock and partial files."""
        with translate_errors(self.root, "read"):
            return sorted(self._entries(prefix), key=lambda entry: entry.name)

    def folders(self) -> list[str]:
        """Return the names of the folders directly below, sorted."""
        with translate_errors(self.root, "read"):
            try:
                return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
            except FileNotFoundError:
                return []

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of the file `name`."""
        path = self._path(name)
        with translate_errors(path, "read"):
            return hash_file(path)["sha256"]

    def require_writable(self) -> None:
        """Create the folder, write and delete a small file; on failure, remove new folders."""
        prepare_folder(self.root)

    def upload(self, path: Path, name: str) -> None:
        """Copy `path` to `name` and verify the copy."""
        target = self._path(name)
        with translate_errors(target), replacing(target) as temporary:
            shutil.copyfile(path, temporary)
            if hash_file(temporary) != hash_file(path):
                raise OSError(f"the copy of {path} differs from the original")

    def download(self, name: str, path: Path, version: str | None = None) -> None:
        """Copy `name` to `path`; with `version`, only if that is its version."""
        source = self._path(name)
        if not source.is_file():
            raise UsageError("The file does not exist.", "Check the path.", received=source)
        entry = _entry(source, name)
        if version is not None and (entry is None or entry.version != version):
            raise TemporaryError(
                f"{source} was replaced while it was read.", "Try again.", received=f"not version {version}"
            )
        FolderStore(path.parent).upload(source, path.name)

    def _entries(self, prefix: str) -> Iterator[Entry]:
        # Walk only the deepest folder of the prefix, and skip what other processes remove meanwhile.
        top = self.root / prefix.rpartition("/")[0]
        for folder, _, files in os.walk(top, onerror=_ignore_unreadable):
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(self.root).as_posix()
                if not name.startswith(prefix) or file == _LOCK or is_temporary(PurePath(name)):
                    continue
                if (entry := _entry(path, name)) is not None:
                    yield entry

    def _path(self, name: str) -> Path:
        return self.root / name


def _entry(path: Path, name: str) -> Entry | None:
    status = _status(path)
    return Entry(name, status.st_size, f"{status.st_mtime_ns}-{status.st_ino}") if status else None


def _ignore_unreadable(error: OSError) -> None:
    """Ignore folders that do not exist (any more) or are not readable; raise any other error."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        raise error


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a regular file, or None if there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
