"""Safe extraction of archives into the cache.

An archive is a local zip, tar or gzipped tar. The format is detected from the first bytes, not from the file
name. The target folder is named by the SHA-256 of the archive, followed by the encoding of the member names
if a zip does not use the standard one, and is created atomically. Only regular files are extracted: a
symbolic link, a device, an unsafe name, an archive bomb, an encrypted or a damaged member rejects the whole
archive. A hard link to an earlier member becomes a copy of it. Archives inside an archive are not extracted.
"""

from __future__ import annotations

import gzip
import re
import tarfile
from functools import partial
from pathlib import Path
from typing import Literal

from trainer.data.archive_errors import read_error, reading
from trainer.data.extractor import Unpacker
from trainer.data.progress import Progress
from trainer.data.unpack_tar import unpack_tar
from trainer.data.unpack_zip import STANDARD, unpack_zip, zip_encoding
from trainer.errors import DataError
from trainer.storage import build_once

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
        progress.say(
            f"{path.name} does not declare the encoding of its file names; they are decoded as {encoding}. "
            "If they look wrong, unpack the archive and use the folder."
        )
    folder = cache_dir / "extracted" / name
    build = partial(_unpack, path, kind, max_bytes, progress)
    return build_once(
        folder, build, lambda: progress.say(f"Waiting for another process that extracts {path.name}")
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
