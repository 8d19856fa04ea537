"""Formatting of names and numbers for display."""

from __future__ import annotations

import unicodedata

from rich.cells import get_character_cell_size

_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def shorten(name: str, limit: int) -> str:
    """Return `name` on one line of at most `limit` columns, with its middle elided if it is longer.

    A Chinese, Japanese or Korean character takes two columns (Unicode Standard Annex 11). Unprintable
    characters (control characters, bidirectional marks, undecodable bytes of a file name) become spaces.
    """
    printable = "".join(" " if unicodedata.category(char) in _UNPRINTABLE else char for char in name)
    text = " ".join(printable.split()) or "-"
    if columns(text) <= limit:
        return text
    front = limit // 2
    back = cut(text[::-1], limit - 1 - front)[::-1]
    while back and not get_character_cell_size(back[0]):
        back = back[1:]  # a combining mark whose base character was cut off
    return f"{cut(text, front)}…{back}"


def columns(text: str) -> int:
    """Return the number of terminal columns that `text` takes."""
    return sum(map(get_character_cell_size, text))


def padded(text: str, width: int) -> str:
    """Return `text` padded with trailing spaces to `width` columns."""
    return text + " " * (width - columns(text))


def clip(text: str, limit: int) -> str:
    """Return `text` in at most `limit` columns, with its end elided if it is longer."""
    return text if columns(text) <= limit else f"{cut(text, limit - 1)}…"


def cut(text: str, limit: int) -> str:
    """Return the longest prefix of `text` that fits into `limit` columns."""
    width = 0
    for index, character in enumerate(text):
        width += get_character_cell_size(character)
        if width > limit:
            return text[:index]
    return text


def capitalize(text: str) -> str:
    """Return `text` with an upper-case first letter and the other letters unchanged."""
    return text[:1].upper() + text[1:]


def format_duration(seconds: float) -> str:
    """Return a duration as `48 s`, `26 min 40 s` or `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_count(count: int, noun: str, plural: str = "") -> str:
    """Return `1 image` or `2,000 images`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def format_share(value: float | None) -> str:
    """Return a value with three decimals (`-` for None); only exact values become 1.000 or 0.000."""
    if value is None:
        return "-"
    text = f"{value:.3f}"
    if text == "1.000" and value < 1:
        return ">0.999"
    return "<0.001" if text == "0.000" and value > 0 else text
