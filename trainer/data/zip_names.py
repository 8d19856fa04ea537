"""The names in a zip, which often doesn't say how they are encoded.

In: the members of a zip. Out: their names as text, with "/" between folders. The format knows UTF-8, with a
flag, and the code page 437; other tools write what their system has, which shows in the characters.
"""

from __future__ import annotations

import unicodedata
import zipfile
from collections.abc import Sequence

_UTF8_FLAG = 0x800
STANDARD = "cp437"
"""What a name without the flag is encoded in, as the format has it."""
# In this order: what is read by the scripts that only its own language writes, before those that share bytes.
_SCRIPTS = {
    "cp932": ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "FULLWIDTH", "IDEOGRAPHIC"),
    "euc_kr": ("HANGUL",),
    "gb2312": ("CJK UNIFIED",),
    "cp850": ("LATIN",),
    "cp866": ("CYRILLIC",),
}
_OF_WORDS = ("cp850", "cp866")
# About half of all Chinese characters are Hangul in EUC-KR: a few that all are prove nothing.
_LEAST_HANGUL = 4
_MOST_MIXED = 1 / 3


def encoding_of(members: Sequence[zipfile.ZipInfo]) -> str | None:
    """Return the encoding of the names that don't state theirs; None if all are UTF-8, as ASCII is too."""
    encoded = [data for data in map(_encoded, members) if data is not None]
    if all(_as_utf8(data) is not None for data in encoded):
        return None
    return next((name for name in _SCRIPTS if _fits(encoded, name)), STANDARD)


def name_of(member: zipfile.ZipInfo, encoding: str | None) -> str:
    """Return the member's name; `encoding` is what `encoding_of` returns for its archive."""
    data = _encoded(member)
    if data is None:
        name = member.orig_filename
    elif encoding in _SCRIPTS:
        name = data.decode(encoding)
    else:
        name = _as_utf8(data) or data.decode(STANDARD)
    # Some tools of Windows write its own separator. What leads out of the folder is refused all the same.
    return name.replace("\\", "/")


def _encoded(member: zipfile.ZipInfo) -> bytes | None:
    """Return the bytes of a name whose encoding isn't stated, None for any other."""
    if member.flag_bits & _UTF8_FLAG or member.orig_filename.isascii():
        return None
    # Not `filename`, which ends at a NUL.
    return member.orig_filename.encode(STANDARD)


def _as_utf8(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _fits(encoded: Sequence[bytes], encoding: str) -> bool:
    """Return whether all names, decoded so, are text of one script."""
    try:
        text = "/".join(data.decode(encoding) for data in encoded)
    except UnicodeDecodeError:
        return False
    foreign = [place for place, character in enumerate(text) if not character.isascii()]
    if not all(unicodedata.name(text[place], "").startswith(_SCRIPTS[encoding]) for place in foreign):
        return False
    if encoding == "euc_kr" and len({text[place] for place in foreign}) < _LEAST_HANGUL:
        return False
    # Accented letters stand among others; signs for words and syllables seldom do.
    mixed = sum(
        _is_letter(text[place - 1 : place]) or _is_letter(text[place + 1 : place + 2]) for place in foreign
    )
    return encoding in _OF_WORDS or mixed <= _MOST_MIXED * len(foreign)


def _is_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()
