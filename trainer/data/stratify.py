"""A share of images with any number of labels, in which each label has its share.

In: the labels of each content, and a fraction. Out: the contents that are held out. It is the iterative
stratification of Sechidis, Tsoumakas and Vlahavas ("On the Stratification of Multi-Label Data", ECML PKDD
2011) without random numbers: labels take their turns by how few of their images are left, and of a label's
images those with the lowest hashes are held out, so that few change sides when images are added.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Set


def hold_out(labels: Mapping[str, Set[str]], fraction: float, least: int = 1) -> set[str]:
    """Return the contents to hold out, `fraction` of those of each label as nearly as they fit together.

    labels: of each content, by its hash. Of a label with two contents or more at least one is left, and at
    least `least` are held out unless another label's turn came first. Contents without a label make up what
    is missing of the whole.
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
