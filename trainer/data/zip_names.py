"""Detection of the encoding of file names in zip archives.

Names are decoded to text with "/" between folders. The format defines UTF-8, with a flag, and code page 437.
Other tools use the encoding of their system, which is detected from the characters.
"""

from __future__ import annotations

import unicodedata
import zipfile
from collections.abc import Sequence

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
_OF_WORDS = ("cp850", "cp866")
# About half of all Chinese characters are Hangul in EUC-KR, so a few such characters prove nothing.
_LEAST_HANGUL = 4
_MOST_MIXED = 1 / 3


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
    foreign = [place for place, character in enumerate(text) if not character.isascii()]
    if not all(unicodedata.name(text[place], "").startswith(_SCRIPTS[encoding]) for place in foreign):
        return False
    if encoding == "euc_kr" and len({text[place] for place in foreign}) < _LEAST_HANGUL:
        return False
    # Accented letters occur next to ASCII letters; characters for words and syllables seldom do.
    mixed = sum(
        _is_letter(text[place - 1 : place]) or _is_letter(text[place + 1 : place + 2]) for place in foreign
    )
    return encoding in _OF_WORDS or mixed <= _MOST_MIXED * len(foreign)


def _is_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()
