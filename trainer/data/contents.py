"""Images to one digest, by which it is known whether they are the same ones.

In: their names, labels and the digests of their bytes. Out: 64 hex digits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from trainer.data.items import Item


def content_digest(items: Sequence[Item], contents: Sequence[str]) -> str:
    """Return the SHA-256, in hex, of all (split, label, name, content), sorted: equal for equal data sets."""
    lines = sorted(
        "\0".join((item.split or "", item.label, item.name, content))
        for item, content in zip(items, contents, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_digest(names: Sequence[str], labels: Sequence[str], contents: Sequence[str]) -> str:
    """Return the SHA-256, in hex, of all (label, name, content) of one split, sorted."""
    lines = sorted("\0".join(each) for each in zip(labels, names, contents, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
