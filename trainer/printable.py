"""Names of files and classes as anything can hold and show them, and addresses without passwords.

In: any text. Out: text without what a file refuses or a terminal obeys, and without the user, the password,
the query and the fragment of an address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

# The last two are those that turn the direction of a text, and so let one name pass for another.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# With one slash or none too, as people mistype them and as a path shortens them.
_SCHEME = re.compile(
    r"([a-z][a-z0-9+.-]+:)//+|((?:https?|ftps?):)(?:/|(?=\S))|(?<![a-z0-9])((?:gs|s3):)(?:/|(?=\S))",
    re.IGNORECASE,
)
_OBJECTS = ("gs:", "file:")
"""Schemes whose names may hold ? and #."""
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""How a formula begins; after apostrophes too, so that each text has a cell of its own."""
_HIDDEN = "..."
_MARKS = re.compile(r"(\?\.\.\.)?(#\.\.\.)?$")
_CLOSING = dict(zip("'\"`(<[{", "'\"`)>]}", strict=True))
_CLOSERS = r"'\"`)>\]},.;:!"
"""What may follow an address in a text, as a set of a regular expression."""
_FOLLOWED = re.compile(rf"(.*?(?:[?#/]\.\.\.)?)([{_CLOSERS}]*)", re.DOTALL)


def printable(text: str) -> str:
    """Return `text` with bytes that are not UTF-8 as \\udcXX and control characters as \\xXX or \\uXXXX."""
    spelled = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), spelled)


def printable_lines(text: str) -> str:
    """Return `text` with each of its lines printable."""
    return "\n".join(map(printable, text.split("\n")))


def spreadsheet_cell(text: str) -> str:
    """Return `text` so that no spreadsheet takes it for a formula: after an apostrophe, as OWASP advises."""
    return f"'{text}" if _FORMULA.match(text) else text


def text_of_cell(cell: str) -> str:
    """Return the original text of a `spreadsheet_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
    """Return a message with each address in it as `shown_address` shows it.

    An address ends at a blank, or at the quote or bracket that closes the one before it. Those of `known`,
    such as the words of a command line, are replaced whatever they hold.
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
    """Return an address without its user, password, query and fragment; other text as it is.

    The address goes from its scheme to the end of the text; what stands before it, such as `data.source=`,
    stays. Of one that can't be parsed only the scheme is left. Never raises.
    """
    match = _SCHEME.search(address)
    if match is None:
        return address
    scheme = next(filter(None, match.groups()))
    rest = _shown_rest(address[match.end() :], scheme.lower() in _OBJECTS)
    return address[: match.end()] + (_HIDDEN if rest is None else rest)


def is_address(text: str) -> bool:
    """Return whether `text` begins as an address does."""
    return _SCHEME.match(text) is not None


def bare_address(address: str) -> str:
    """Return what `shown_address` returns, without a sign that there was a query or a fragment."""
    return _MARKS.sub("", shown_address(address))


def shown_values(value: Any, show: Callable[[str], str] = shown_address) -> Any:
    """Return plain values, such as those of a spec, with each text in them as `show` shows it."""
    if isinstance(value, str):
        return show(value)
    if isinstance(value, Mapping):
        return {key: shown_values(each, show) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown_values(each, show) for each in value]
    return value


def _shown_rest(rest: str, is_object: bool) -> str | None:
    """Return what may be shown of an address after its scheme; None if it can't be told apart."""
    bucket = rest.partition("/")[0]
    if is_object and "@" not in bucket and ":" not in bucket:
        return rest
    try:
        parts = urlsplit(f"https://{rest}")
    except ValueError:
        return None
    host = parts.netloc.rpartition("@")[2]
    _, colon, port = host.rpartition("]")[2].partition(":")
    # A slash, ? or # in a password, which should be escaped, ends the host: what follows looks like a path.
    is_cut = "@" in parts.path and ":" in f"{parts.netloc}{parts.path.rpartition('@')[0]}"
    is_cut |= "@" in parts.netloc and "@" in f"{parts.path}{parts.query}{parts.fragment}"
    is_cut |= bool(colon) and "@" in f"{parts.query}{parts.fragment}"
    if is_cut or port.strip("0123456789"):
        return None
    query, fragment = f"?{_HIDDEN}" if parts.query else "", f"#{_HIDDEN}" if parts.fragment else ""
    return f"{host}{parts.path}{query}{fragment}"


def _end_of_address(text: str, start: int) -> int:
    """Return where the address that begins at `start` ends in a text."""
    blank = re.compile(r"\s|$").search(text, start)
    end = blank.start() if blank else len(text)
    closing = _CLOSING.get(text[start - 1 : start])
    if closing is None:
        return end
    # As repr writes it: an odd number of backslashes before the quote is part of the text.
    quote = rf"(?<!\\)(?:\\\\)*{re.escape(closing)}(?=[\s{_CLOSERS}]|$)"
    closed = re.compile(rf"{quote}|\n").search(text, start)
    return max(end, closed.end() - 1) if closed and closed[0] != "\n" else end


def _with_known_shown(text: str, word: str) -> str:
    """Return `text` with the address that `word` holds replaced, as it is, quoted, or as a path.

    And what click takes for the name of an option, the part before an equals sign.
    """
    match = _SCHEME.search(word)
    address = word[match.start() :] if match else ""
    for part in (address, address.partition("=")[0]):
        shown = shown_address(part)
        if shown != part:
            for each in (part, repr(part)[1:-1], str(PurePosixPath(part))):
                text = text.replace(each, shown)
    return text
