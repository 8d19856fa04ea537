"""Extraction of zip archives, and detection of the encoding of their file names.

Members are passed to an `Unpacker`. A link, a device or an encrypted member rejects the archive. Names are
decoded to text with "/" between folders. The format defines UTF-8, with a flag, and code page 437. Some tools
use the encoding of their system, which is detected from the characters.
"""

from __future__ import annotations

import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

from trainer.data.archive_errors import chunks, reading
from trainer.data.extractor import Unpacker, member_error, require_archive_ratio, too_large
from trainer.data.progress import Progress

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


def name_of(member: zipfile.ZipInfo, encoding: str | None) -> str:
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
                _unpack_zip_member(archive, member, name_of(member, encoding), path, unpacker)
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
