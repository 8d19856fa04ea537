"""Names of files and classes as anything can hold and show them.

In: any text. Out: text without what a file refuses or a terminal obeys.
"""

from __future__ import annotations

import re

_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return `text` with bytes that are not UTF-8 as \\udcXX and control characters as \\xXX."""
    spelled = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", spelled)


def printable_lines(text: str) -> str:
    """Return `text` with each of its lines printable."""
    return "\n".join(map(printable, text.split("\n")))
