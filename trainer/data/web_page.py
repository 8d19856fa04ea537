"""Detection of web pages that a server sends instead of a file.

Such a page is a sign-in, a confirmation or an error that is sent with "200 OK".
"""

from __future__ import annotations

import re
from pathlib import Path

_LOOK_BYTES = 1024
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S
)


def is_web_page(path: Path) -> bool:
    """Return whether the file begins with HTML. Raises OSError."""
    with open(path, "rb") as file:
        return _PAGE.match(file.read(_LOOK_BYTES)) is not None
