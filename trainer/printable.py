"""Names of files and classes as anything can hold and show them.

In: any text. Out: text without what a file refuses or a terminal obeys, and without passwords.
"""

from __future__ import annotations

import re

# The last two are those that turn the direction of a text, and so let one name pass for another.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_WEB_ADDRESS = re.compile(r"(https?://)(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(\?[^\s#'\"]*)?", re.IGNORECASE)


def printable(text: str) -> str:
    """Return `text` with bytes that are not UTF-8 as \\udcXX and control characters as \\xXX or \\uXXXX."""
    spelled = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), spelled)


def printable_lines(text: str) -> str:
    """Return `text` with each of its lines printable."""
    return "\n".join(map(printable, text.split("\n")))


def without_secrets(text: str) -> str:
    """Return `text` with its web addresses cut to what names a thing: no user, no password, no query."""
    return _WEB_ADDRESS.sub(lambda found: f"{found[1]}{found[2]}{'?...' if found[3] else ''}", text)
