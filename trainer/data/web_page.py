"""Web pages that come in the place of a file.

In: a file. Out: whether it is a page: a sign-in, a confirmation or an error that a server sent with "200 OK".
"""

from __future__ import annotations

import re
from pathlib import Path

_LOOK_BYTES = 1024
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S
)


def is_web_page(path: Path) -> bool:
    """Return whether the file begins as HTML does. Raises OSError."""
    with open(path, "rb") as file:
        return _PAGE.match(file.read(_LOOK_BYTES)) is not None
