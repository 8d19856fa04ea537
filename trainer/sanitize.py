"""Sanitization of text for files, terminals and spreadsheets, and redaction of URLs.

Control characters and invalid UTF-8 are escaped. URLs lose their user, password, query and fragment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

# The last two ranges change the direction of text, so that one name can look like another.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Also with one slash or none: a typing error, or a URL shortened by pathlib.
_SCHEME = re.compile(
    r"([a-z][a-z0-9+.-]+:)//+|((?:https?|ftps?):)(?:/|(?=\S))|(?<![a-z0-9])((?:gs|s3):)(?:/|(?=\S))",
    re.IGNORECASE,
)
_OBJECTS = ("gs:", "file:")
"""Schemes whose object names may contain ? and #."""
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Start of a spreadsheet formula; leading apostrophes match too, so that escaping is reversible."""
_HIDDEN = "..."
_MARKS = re.compile(r"(\?\.\.\.)?(#\.\.\.)?$")
_CLOSING = dict(zip("'\"`(<[{", "'\"`)>]}", strict=True))
_CLOSERS = r"'\"`)>\]},.;:!"
"""Characters that may follow a URL in a text, for a regular expression character set."""
_FOLLOWED = re.compile(rf"(.*?(?:[?#/]\.\.\.)?)([{_CLOSERS}]*)", re.DOTALL)


def printable(text: str) -> str:
    """Return `text` with invalid UTF-8 bytes as \\udcXX and control characters as \\xXX or \\uXXXX."""
    escaped = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), escaped)


def printable_lines(text: str) -> str:
    """Return `text` with each line escaped by `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def spreadsheet_cell(text: str) -> str:
    """Return `text`, after an apostrophe if it could be a spreadsheet formula, as OWASP recommends."""
    return f"'{text}" if _FORMULA.match(text) else text


def text_of_cell(cell: str) -> str:
    """Return the original text of a `spreadsheet_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
    """Return `text` with each URL redacted by `shown_address`.

    A URL ends at whitespace, or at the quote or bracket that closes the one before it. URLs in `known`, such
    as the words of a command line, are redacted even if they contain such characters.
    """
    for word in known:
        text = _with_known_shown(text, word)
    shown, end = "", 0
    while match := _SCHEME.search(text, end):
        stop = _end_of_address(text, match.start())
        followed = _FOLLOWED.fullmatch(text, match.start(), stop)
        address, after = followed.groups() if followed else (text[match.start() : stop], "")
        shown += text[end : match.start()] + shown_address(address) + after
        end = stop
    return shown + text[end:]


def shown_address(address: str) -> str:
    """Return a URL without its user, password, query and fragment; other text is returned unchanged.

    The URL extends from its scheme to the end of the text; a prefix such as `data.source=` is kept. If the
    URL cannot be parsed, only its scheme is kept. Never raises.
    """
    match = _SCHEME.search(address)
    if match is None:
        return address
    scheme = next(filter(None, match.groups()))
    rest = _shown_rest(address[match.end() :], scheme.lower() in _OBJECTS)
    return address[: match.end()] + (_HIDDEN if rest is None else rest)


def is_address(text: str) -> bool:
    """Return whether `text` starts with a URL scheme."""
    return _SCHEME.match(text) is not None


def bare_address(address: str) -> str:
    """Return the result of `shown_address` without the marks of a removed query or fragment."""
    return _MARKS.sub("", shown_address(address))


def shown_values(value: Any, show: Callable[[str], str] = shown_address) -> Any:
    """Return plain values, such as those of a spec, with `show` applied to each string."""
    if isinstance(value, str):
        return show(value)
    if isinstance(value, Mapping):
        return {key: shown_values(item, show) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown_values(item, show) for item in value]
    return value


def _shown_rest(rest: str, is_object: bool) -> str | None:
    """Return the redacted part of a URL after its scheme; None if it cannot be parsed reliably."""
    bucket = rest.partition("/")[0]
    if is_object and "@" not in bucket and ":" not in bucket:
        return rest
    try:
        parts = urlsplit(f"https://{rest}")
    except ValueError:
        return None
    host = parts.netloc.rpartition("@")[2]
    port = host.rpartition("]")[2].partition(":")[2]
    # An unescaped slash, ? or # in a password ends the host, and the rest looks like a path.
    has_credentials = ":" in re.split("[?#]", rest.rpartition("@")[0])[0] or "@" in parts.netloc
    is_cut = has_credentials and "@" in f"{parts.path}{parts.query}{parts.fragment}"
    if is_cut or port.strip("0123456789"):
        return None
    query, fragment = f"?{_HIDDEN}" if parts.query else "", f"#{_HIDDEN}" if parts.fragment else ""
    return f"{host}{parts.path}{query}{fragment}"


def _end_of_address(text: str, start: int) -> int:
    """Return the index in `text` at which the URL that starts at `start` ends."""
    blank = re.compile(r"\s|$").search(text, start)
    end = blank.start() if blank else len(text)
    closing = _CLOSING.get(text[start - 1 : start])
    if closing is None:
        return end
    # In a repr, a quote after an odd number of backslashes is part of the text.
    quote = rf"(?<!\\)(?:\\\\)*{re.escape(closing)}(?=[\s{_CLOSERS}]|$)"
    closed = re.compile(rf"{quote}|\n").search(text, start)
    return max(end, closed.end() - 1) if closed and closed[0] != "\n" else end


def _with_known_shown(text: str, word: str) -> str:
    """Return `text` with the URL in `word` redacted: verbatim, as a repr, or as a path.

    The part before an equals sign, which click reports as an option name, is redacted too.
    """
    match = _SCHEME.search(word)
    address = word[match.start() :] if match else ""
    for part in (address, address.partition("=")[0]):
        shown = shown_address(part)
        if shown != part:
            for spelling in (part, repr(part)[1:-1], str(PurePosixPath(part))):
                text = text.replace(spelling, shown)
    return text
