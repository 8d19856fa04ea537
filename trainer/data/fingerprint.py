"""Fingerprints of image data sets.

A fingerprint is a SHA-256 digest (64 hex digits) of the names, labels and content hashes of the images. It is
used to detect whether two data sets are the same.
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
