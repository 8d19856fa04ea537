"""Extraction of plain and gzipped tar archives.

The archive is read once, as a stream, and its members are passed to an `Unpacker`. A damaged header or a
missing end marker is an error, not the end of the archive.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from trainer.data.archive_errors import CHUNK_BYTES, Readable, chunks, reading
from trainer.data.extractor import Unpacker, member_error, require_archive_ratio
from trainer.data.progress import Progress, Task

_HEADER_BYTES = 1 << 20
# Bytes that the gzip and tar readers may have read before the current member.
_AHEAD_BYTES = 1 << 18


class _StrictTarInfo(tarfile.TarInfo):
    """A header parser that accepts only the end marker as the end of an archive.

    `tarfile` silently stops at a damaged header, and at a file that is truncated between two members. It also
    reads a long name into memory whatever its size.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        if len(buf) == tarfile.BLOCKSIZE and not any(buf):
            return super().frombuf(buf, encoding, errors)
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error) if buf else "it has no end marker") from error
        is_metadata = not header.isreg() and not header.isdir()
        if header.size < 0 or (is_metadata and header.size > _HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


class _Stream(io.BufferedIOBase):
    """The tar stream inside a file, with a check of its compression ratio."""

    def __init__(self, file: BinaryIO, is_gzip: bool, archive: str, task: Task) -> None:
        self._file, self._archive, self._task = file, archive, task
        self._source: Readable = gzip.GzipFile(fileobj=file) if is_gzip else file
        self._unpacked = 0
        self.packed = 0
        """Number of bytes read from the file, including read-ahead."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._source.read(-1 if size is None else size)
        packed = self._file.tell()
        self._task.advance(packed - self.packed)
        self.packed, self._unpacked = packed, self._unpacked + len(data)
        require_archive_ratio(self._archive, self._unpacked, packed)
        return data

    def packed_since(self, start: int) -> int:
        """Return an upper bound of the bytes that were read from the file since `packed` was `start`."""
        return self.packed - start + _AHEAD_BYTES


def unpack_tar(path: Path, is_gzip: bool, unpacker: Unpacker, progress: Progress) -> None:
    """Pass every member of the tar at `path` to `unpacker`. Raises DataError, and its errors."""
    task = progress.start(f"Extracting {path.name}", path.stat().st_size, "B")
    try:
        with reading(path), open(path, "rb") as file:
            stream = _Stream(file, is_gzip, str(path), task)
            _unpack_stream(stream, path, unpacker)
            # The checksum of gzip comes last, after the end marker of tar.
            while stream.read(CHUNK_BYTES):
                pass
    finally:
        task.finish()


def _unpack_stream(stream: _Stream, path: Path, unpacker: Unpacker) -> None:
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo, encoding="utf-8") as archive:
        while member := archive.next():
            packed = partial(stream.packed_since, stream.packed)
            _unpack_tar_member(archive, member, path, unpacker, packed)
            # `tarfile` keeps every member it has read: gigabytes for millions of members.
            archive.members.clear()  # type: ignore[attr-defined]


def _unpack_tar_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    path: Path,
    unpacker: Unpacker,
    packed: Callable[[], int],
) -> None:
    if member.isdir():
        unpacker.folder(member.name)
        return
    if member.type == tarfile.LNKTYPE:
        unpacker.copy(member.name, member.linkname, path.stat().st_size)
        return
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) or member.issparse():
        reason = "it is a symbolic link, a device or a sparse file; only regular files are allowed"
        raise member_error(str(path), member.name, reason)
    file = archive.extractfile(member)
    if file is not None:
        with file:
            unpacker.file(member.name, chunks(file, path, member.name), packed)
