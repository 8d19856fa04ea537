"""Images without a split, divided into training and validation by their content.

In: items, the hash of each one's content, a fraction. Out: the same items, each with a split. No
random numbers: an image's side follows from its bytes, so that it stays where it is when others
are added, and equal images, under whatever name, are always on the same side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from trainer.data.items import Item

_HASH_DIGITS = 16
_RANGE = float(16**_HASH_DIGITS)


def assign_splits(items: Sequence[Item], contents: Sequence[str], fraction: float) -> list[Item]:
    """Return `items` with every split that is None set to 'train' or 'validation'.

    contents: the SHA-256 of each item's bytes, 64 hex digits. An image is held out if its hash, seen as a
    number from 0 to 1, is below `fraction`; so each class's share is about that, not exactly. A source that
    has only 'train' is divided as well. One thing is done for very small classes: where a class of two
    different images or more would have all of them on one side, its lowest goes to validation or its
    highest to train; such an image may move once more when its class grows.
    """
    if {item.split for item in items} <= {"train", None}:
        items = [replace(item, split=None) for item in items]
    held_out = _held_out(items, contents, fraction)
    return [
        item if item.split else replace(item, split="validation" if content in held_out else "train")
        for item, content in zip(items, contents, strict=True)
    ]


def _held_out(items: Sequence[Item], contents: Sequence[str], fraction: float) -> set[str]:
    """Return the contents that go to validation."""
    free = [(item, content) for item, content in zip(items, contents, strict=True) if item.split is None]
    held_out = {content for _, content in free if int(content[:_HASH_DIGITS], 16) / _RANGE < fraction}
    classes: defaultdict[str, set[str]] = defaultdict(set)
    for item, content in free:
        classes[item.label].add(content)
    for _, members in sorted(classes.items()):
        if len(members) < 2:
            continue
        if not members & held_out:
            held_out.add(min(members))
        elif members <= held_out:
            held_out.discard(max(members))
    return held_out
