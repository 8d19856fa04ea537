"""Iterative stratification of multi-label images.

This is the iterative stratification of Sechidis, Tsoumakas and Vlahavas ("On the Stratification of
Multi-Label Data", ECML PKDD 2011) without random numbers. Labels are processed in the order of their number
of remaining images, fewest first. The images of a label with the lowest hashes are held out, so that few
change sides when images are added.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Set


def hold_out(labels: Mapping[str, Set[str]], fraction: float, least: int = 1) -> set[str]:
    """Return the contents to hold out: approximately `fraction` of the contents of each label.

    labels: labels of each content, by its hash. If a label has two or more contents, at least one is not held
    out and at least `least` are held out, unless labels that were processed before prevent it. Contents
    without a label fill up the total.
    """
    totals = Counter(label for each in labels.values() for label in each)
    held: set[str] = set()
    counts: Counter[str] = Counter()
    waiting = set(labels)
    while left := Counter(label for content in waiting for label in labels[content]):
        label = min(left, key=lambda name: (left[name], name))
        group = sorted(content for content in waiting if label in labels[content])
        wanted = max(_rounded(fraction * totals[label]), min(least, totals[label] - 1)) - counts[label]
        for content in group:
            if wanted > 0 and all(counts[each] + 1 < totals[each] for each in labels[content]):
                held.add(content)
                counts.update(labels[content])
                wanted -= 1
        waiting.difference_update(group)
    missing = _rounded(fraction * len(labels)) - len(held)
    return held | set(sorted(waiting)[: max(0, missing)])


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)
