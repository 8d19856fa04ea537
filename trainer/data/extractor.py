"""Safety limits for extracting archive members.

Members are written as regular files below one folder. Names are validated as strings, before any path is
created. Bytes are counted as they arrive, whatever size the archive declares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.archive_errors import CHUNK_BYTES
from trainer.errors import DataError, UsageError
from trainer.storage import translate_errors, write_all

MAX_MEMBERS = 5_000_000
"""Maximum number of files and folders in one archive."""
MAX_NAME_BYTES = 2048
"""Maximum length of a whole name, so that it fits into the system's 4,096 together with the cache folder."""
MAX_PART_BYTES = 255
"""Maximum length of one file or folder name; the limit of every common file system."""
MAX_DEPTH = 100
"""Maximum number of parts in one name."""
MAX_RATIO = 200
"""Maximum compression ratio. Images of a single colour reach 1,000, but they are small."""
FREE_MEMBER_BYTES = 64 * 2**20
FREE_ARCHIVE_BYTES = 2**30
"""Below these sizes a high ratio is harmless, and common for drawings and masks."""
_REMEDY = "No file of it was kept. Use an archive from a source that you trust."


class UnsafeNameError(ValueError):
    """A member name that must not become a path; the message contains the reason."""


def safe_parts(name: str) -> tuple[str, ...]:
    """Return the folder names and the file name in `name`; empty for the root ("./").

    Raises UnsafeNameError for a name that is absolute, contains "..", a drive letter, a backslash, a NUL or
    text that is not valid Unicode, or is too long for a file system.
    """
    reason = _reason_against(name)
    if reason:
        raise UnsafeNameError(reason)
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _reason_against(name: str) -> str | None:
    parts = name.split("/")
    try:
        longest, whole = max(len(part.encode()) for part in parts), len(name.encode())
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    checks = {
        "its name contains a NUL": "\0" in name,
        "its name is absolute": name.startswith("/"),
        "its name has a drive letter": re.match(r"[A-Za-z]:", name) is not None,
        "its name contains a backslash": "\\" in name,
        "its name contains '..'": ".." in parts,
        "its name is too long": longest > MAX_PART_BYTES or whole > MAX_NAME_BYTES,
        "its name has too many folders": len(parts) > MAX_DEPTH,
    }
    return next((reason for reason, is_so in checks.items() if is_so), None)


def member_error(archive: str, member: str, reason: str) -> DataError:
    """Return the error that rejects the whole `archive` because of one `member`."""
    # Only the first 200 characters, so that a long name does not hide the reason.
    return DataError(
        f"The archive is rejected because of one member: {reason}.",
        _REMEDY,
        received=f"member {member[:200]!r} of {archive}",
    )


class TooLargeError(DataError):
    """An archive, a download or a bucket folder exceeds the limit; the message names the data setting.

    Callers that fetch anything other than data must replace the message.
    """


def too_large(source: str, max_bytes: int) -> TooLargeError:
    """Return the error for an archive or a download of more than `max_bytes`."""
    return TooLargeError(
        f"The data are larger than data.max_extracted_mib allows ({max_bytes / 2**20:,.0f} MiB).",
        "Raise data.max_extracted_mib if you trust the source.",
        received=source,
    )


def require_archive_ratio(archive: str, unpacked_bytes: int, packed_bytes: int) -> None:
    """Raise DataError if the compression ratio of a whole archive exceeds the limit."""
    if unpacked_bytes > max(FREE_ARCHIVE_BYTES, MAX_RATIO * packed_bytes):
        raise DataError(
            f"The archive is rejected: it expands to more than {MAX_RATIO} times its size, like an archive "
            "bomb.",
            _REMEDY,
            received=archive,
        )


@dataclass
class Unpacker:
    """Writes the members of one archive below `root` and enforces the limits."""

    archive: str
    root: Path
    max_bytes: int
    _bytes: int = 0
    _members: int = 0
    _folders: set[Path] = field(default_factory=set)

    def folder(self, name: str) -> None:
        """Create the folder `name`. Raises DataError, TemporaryError."""
        self._create_folder(self._path_of(name), name)

    def file(self, name: str, chunks: Iterable[bytes], packed_bytes: Callable[[], int]) -> None:
        """Write `chunks` to the file `name`; a later member of the same name replaces an earlier one.

        `packed_bytes` returns the number of archive bytes from which the chunks so far were decompressed.
        Raises DataError (unsafe name, limit exceeded), TemporaryError (full disk).
        """
        path = self._path_of(name)
        if path == self.root:
            raise member_error(self.archive, name, "its name is empty")
        self._create_folder(path.parent, name)
        with _reject_name_conflicts(self.archive, path, name):
            file = open(path, "wb", buffering=0)  # noqa: SIM115
        size = 0
        # Closing the file can fail too.
        with translate_errors(path), file:
            for chunk in chunks:
                size += len(chunk)
                self._count(len(chunk))
                if size > max(FREE_MEMBER_BYTES, MAX_RATIO * packed_bytes()):
                    reason = f"it expands to more than {MAX_RATIO} times its size, like an archive bomb"
                    raise member_error(self.archive, name, reason)
                write_all(file, chunk)

    def copy(self, name: str, target: str, archive_bytes: int) -> None:
        """Write the file `name` as a copy of `target`, a member that was written before.

        `archive_bytes` is the size of the whole archive. Raises DataError, TemporaryError.
        """
        source = self._path_of(target)
        # There are no links below the root, so a file there belongs to the archive itself.
        if not source.is_file() or source == self._path_of(name):
            raise member_error(
                self.archive, name, "it is a hard link to something other than an earlier file"
            )
        size = source.stat().st_size
        require_archive_ratio(self.archive, self._bytes + size, archive_bytes)
        with translate_errors(source, "read"), open(source, "rb") as file:
            self.file(name, iter(lambda: file.read(CHUNK_BYTES), b""), lambda: size)

    def _count(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self.max_bytes:
            raise too_large(self.archive, self.max_bytes)

    def _path_of(self, name: str) -> Path:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise DataError(
                f"The archive contains more than {MAX_MEMBERS:,} files.", "Split it.", received=self.archive
            )
        try:
            return self.root.joinpath(*safe_parts(name))
        except UnsafeNameError as error:
            raise member_error(self.archive, name, str(error)) from None

    def _create_folder(self, folder: Path, name: str) -> None:
        if folder not in self._folders:
            with _reject_name_conflicts(self.archive, folder, name):
                folder.mkdir(parents=True, exist_ok=True)
            self._folders.add(folder)


@contextmanager
def _reject_name_conflicts(archive: str, path: Path, member: str) -> Iterator[None]:
    """Like `translate_errors`, but reject the archive if a name is both a file and a folder."""
    try:
        with translate_errors(path):
            yield
    except UsageError as error:
        if isinstance(error.__cause__, (FileExistsError, NotADirectoryError, IsADirectoryError)):
            raise member_error(archive, member, "its name is used for both a file and a folder") from error
        raise
