"""Extraction of zip archives.

Members are passed to an `Unpacker`. A link, a device or an encrypted member rejects the archive.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from trainer.data.archive_errors import chunks, reading
from trainer.data.extractor import Unpacker, refused, require_archive_ratio, too_large
from trainer.data.progress import Progress
from trainer.data.zip_names import encoding_of, name_of


def zip_encoding(path: Path) -> str | None:
    """Return the encoding of the names in the zip at `path`, see `encoding_of`. Raises DataError."""
    with reading(path), zipfile.ZipFile(path) as archive:
        return encoding_of(archive.infolist())


def unpack_zip(path: Path, unpacker: Unpacker, progress: Progress) -> None:
    """Pass every member of the zip at `path` to `unpacker`. Raises DataError, and its errors."""
    with reading(path):
        archive = zipfile.ZipFile(path)
    with archive:
        members = archive.infolist()
        encoding = encoding_of(members)
        total = sum(member.file_size for member in members)
        # A member never yields more bytes than it declares, so bombs are detected before anything is written.
        require_archive_ratio(str(path), total, path.stat().st_size)
        if total > unpacker.max_bytes:
            raise too_large(str(path), unpacker.max_bytes)
        task = progress.start(f"Extracting {path.name}", total, "B")
        try:
            for member in members:
                _unpack_zip_member(archive, member, name_of(member, encoding), path, unpacker)
                task.advance(member.file_size)
        finally:
            task.finish()


def _unpack_zip_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, path: Path, unpacker: Unpacker
) -> None:
    file_type = (member.external_attr >> 16) & 0o170000
    if file_type not in (0, 0o100000, 0o040000):
        raise refused(str(path), name, "it holds a link or a device, and only plain files are safe")
    if member.flag_bits & 0x41:
        raise refused(str(path), name, "it is encrypted, so unpack it with its password first")
    if name.endswith("/"):
        unpacker.folder(name)
        return
    with reading(path, f"member {name!r}"):
        file = archive.open(member)
    with file:
        unpacker.file(name, chunks(file, path, name), lambda: member.compress_size)
