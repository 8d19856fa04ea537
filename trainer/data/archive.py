"""Safe extraction of archives into the cache.

An archive is a local zip, tar or gzipped tar. The format is detected from the first bytes, not from the file
name. The target folder is named by the SHA-256 of the archive, followed by the encoding of the member names
if a zip does not use the standard one, and is created atomically. Only regular files are extracted: a
symbolic link, a device, an unsafe name, an archive bomb, an encrypted or a damaged member rejects the whole
archive. A hard link to an earlier member becomes a copy of it. Archives inside an archive are not extracted.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from trainer.data.archive_errors import CHUNK_BYTES, Readable, chunks, read_error, reading
from trainer.data.extractor import Unpacker, member_error, require_archive_ratio, too_large
from trainer.data.progress import Progress, Task
from trainer.errors import DataError
from trainer.storage import build_once

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


_UTF8_FLAG = 0x800
STANDARD = "cp437"
"""Encoding of a name without the flag, as the format defines it."""
# In this order: encodings of scripts that only one language uses, before those that share bytes.
_SCRIPTS = {
    "cp932": ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "FULLWIDTH", "IDEOGRAPHIC"),
    "euc_kr": ("HANGUL",),
    "gb2312": ("CJK UNIFIED",),
    "cp850": ("LATIN",),
    "cp866": ("CYRILLIC",),
}
_LETTER_ENCODINGS = ("cp850", "cp866")
# About half of all Chinese characters are Hangul in EUC-KR, so a few such characters prove nothing.
_MIN_HANGUL = 4
_MAX_MIXED = 1 / 3


def encoding_of(members: Sequence[zipfile.ZipInfo]) -> str | None:
    """Return the encoding of the names that do not declare one; None if all are UTF-8 or ASCII."""
    encoded = [data for data in map(_encoded, members) if data is not None]
    if all(_as_utf8(data) is not None for data in encoded):
        return None
    return next((name for name in _SCRIPTS if _fits(encoded, name)), STANDARD)


def member_name(member: zipfile.ZipInfo, encoding: str | None) -> str:
    """Return the member's name; `encoding` is the result of `encoding_of` for its archive."""
    data = _encoded(member)
    if data is None:
        name = member.orig_filename
    elif encoding in _SCRIPTS:
        name = data.decode(encoding)
    else:
        name = _as_utf8(data) or data.decode(STANDARD)
    # Some Windows tools write backslashes. Names that lead out of the folder are rejected anyway.
    return name.replace("\\", "/")


def _encoded(member: zipfile.ZipInfo) -> bytes | None:
    """Return the bytes of a name without a declared encoding, or None."""
    if member.flag_bits & _UTF8_FLAG or member.orig_filename.isascii():
        return None
    # Not `filename`, which is cut off at a NUL.
    return member.orig_filename.encode(STANDARD)


def _as_utf8(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _fits(encoded: Sequence[bytes], encoding: str) -> bool:
    """Return whether all names, decoded with `encoding`, are text in one script."""
    try:
        text = "/".join(data.decode(encoding) for data in encoded)
    except UnicodeDecodeError:
        return False
    foreign = [position for position, character in enumerate(text) if not character.isascii()]
    if not all(unicodedata.name(text[position], "").startswith(_SCRIPTS[encoding]) for position in foreign):
        return False
    if encoding == "euc_kr" and len({text[position] for position in foreign}) < _MIN_HANGUL:
        return False
    # Accented letters occur next to ASCII letters; characters for words and syllables seldom do.
    mixed = sum(
        _is_letter(text[position - 1 : position]) or _is_letter(text[position + 1 : position + 2])
        for position in foreign
    )
    return encoding in _LETTER_ENCODINGS or mixed <= _MAX_MIXED * len(foreign)


def _is_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()


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
        total_bytes = sum(member.file_size for member in members)
        # A member never yields more bytes than it declares, so bombs are detected before anything is written.
        require_archive_ratio(str(path), total_bytes, path.stat().st_size)
        if total_bytes > unpacker.max_bytes:
            raise too_large(str(path), unpacker.max_bytes)
        task = progress.start(f"Extracting {path.name}", total_bytes, "B")
        try:
            for member in members:
                _unpack_zip_member(archive, member, member_name(member, encoding), path, unpacker)
                task.advance(member.file_size)
        finally:
            task.finish()


def _unpack_zip_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, path: Path, unpacker: Unpacker
) -> None:
    file_type = (member.external_attr >> 16) & 0o170000
    if file_type not in (0, 0o100000, 0o040000):
        raise member_error(str(path), name, "it is a link or a device; only regular files are allowed")
    if member.flag_bits & 0x41:
        raise member_error(str(path), name, "it is encrypted; unpack the archive with its password first")
    if name.endswith("/"):
        unpacker.folder(name)
        return
    with reading(path, f"member {name!r}"):
        file = archive.open(member)
    with file:
        unpacker.file(name, chunks(file, path, name), lambda: member.compress_size)


Kind = Literal["zip", "tar", "gzip"]

_SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (257, b"ustar", "tar"),
)
_UNREAD = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ARCHIVE_NAMES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar", ".zst")


def archive_kind(path: Path) -> Kind | None:
    """Return the archive format detected from the file's first bytes, or None for any other file.

    Raises DataError if the file is not accessible, is an archive in an unsupported format, or has the name of
    an archive but different contents, and TemporaryError for an I/O error.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise read_error(path, error) from error
    for offset, signature, kind in _SIGNATURES:
        if start[offset:].startswith(signature):
            return _require_tar(path) if kind == "gzip" else kind
    for signature, name in _UNREAD.items():
        if start.startswith(signature):
            raise DataError(
                f"Archives of the format {name} are not supported.",
                "Pack the images as .zip or .tar.gz.",
                received=path,
            )
    if not path.name.lower().endswith(_ARCHIVE_NAMES):
        return None
    if _is_tar_header(start):
        return "tar"
    contents = f"it starts with {start[:16]!r}" if start else "it is empty"
    if is_web_page(path):
        contents = "it is a web page, such as a sign-in page that was saved instead of the file"
    raise DataError(
        f"The file has the extension of an archive, but is not an archive: {contents}.",
        "Download or copy it again.",
        received=path,
    )


def extract_archive(path: Path, sha256: str, cache_dir: Path, max_bytes: int, progress: Progress) -> Path:
    """Return the folder with the extracted contents of the archive at `path`; extract it if it is not cached.

    `sha256` (64 hex digits) is the digest of the archive and names the folder. `max_bytes` limits the total
    size of the members. Raises DataError (unsafe, damaged, encrypted, too large), TemporaryError (full disk),
    UsageError (the cache is not writable).
    """
    kind = archive_kind(path)
    encoding = zip_encoding(path) if kind == "zip" else None
    # Earlier versions decoded every name with the standard encoding; their folders may still be in the cache.
    name = sha256 if encoding in (None, STANDARD) else f"{sha256}-{encoding}"
    if encoding is not None:
        progress.on_message(
            f"{path.name} does not declare the encoding of its file names; they are decoded as {encoding}. "
            "If they look wrong, unpack the archive and use the folder."
        )
    folder = cache_dir / "extracted" / name
    build = partial(_unpack, path, kind, max_bytes, progress)
    return build_once(
        folder, build, lambda: progress.on_message(f"Waiting for another process that extracts {path.name}")
    )


def _unpack(path: Path, kind: Kind | None, max_bytes: int, progress: Progress, folder: Path) -> None:
    unpacker = Unpacker(str(path), folder, max_bytes)
    if kind == "zip":
        unpack_zip(path, unpacker, progress)
    else:
        unpack_tar(path, kind == "gzip", unpacker, progress)


def _require_tar(path: Path) -> Kind:
    try:
        with reading(path), gzip.open(path) as file:
            start = file.read(512)
    except DataError:
        # The file is damaged: extraction reports a more precise error.
        return "gzip"
    if _is_tar_header(start) or not any(start):
        return "gzip"
    raise DataError("The file is a single compressed file, not an archive.", "Unpack it.", received=path)


def _is_tar_header(start: bytes) -> bool:
    """Return whether `start` is a tar header with a valid checksum, including headers without "ustar"."""
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


_LOOK_BYTES = 1024
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S
)


def is_web_page(path: Path) -> bool:
    """Return whether the file begins with HTML. Raises OSError."""
    with open(path, "rb") as file:
        return _PAGE.match(file.read(_LOOK_BYTES)) is not None
