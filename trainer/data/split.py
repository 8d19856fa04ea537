"""Deterministic, stratified split into training and validation images by content hash.

The split uses no random numbers: the rank of an image in its class is determined by the hash of its bytes.
Few images therefore change sides when images are added, and images with equal contents are always on the same
side, whatever their names. Multi-label images are split by iterative stratification.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from trainer.data.items import THRESHOLDS, Item

BY_SOURCE, STRATIFIED = "source", "stratified"
"""Origin of the validation images in dataset.json: the source, or `assign_splits`."""
FEWEST_FOR_THRESHOLD = 10
"""Minimum number of images with a label, and without it, for choosing its threshold."""


def assign_splits(
    items: Sequence[Item], contents: Sequence[str], fraction: float, is_multi: bool = False
) -> list[Item]:
    """Return `items` with every split that is None set to 'train' or 'validation'.

    contents: SHA-256 of each item's bytes, 64 hex digits. The images with the lowest hashes of each class are
    held out: `fraction` of its distinct images, rounded so that the total is `fraction` of all (largest
    remainder method). A class of two or more images has at least one on each side. A source with only 'train'
    is split as well. is_multi: whether images have any number of labels; `hold_out` then chooses the images.
    """
    if not is_split_by_source(items):
        items = [replace(item, split=None) for item in items]
    held_out = _choose_held_out(items, contents, fraction, is_multi)
    return [
        item if item.split else replace(item, split="validation" if content in held_out else "train")
        for item, content in zip(items, contents, strict=True)
    ]


def with_thresholds(items: Sequence[Item], contents: Sequence[str], fraction: float) -> list[Item]:
    """Return `items` with `fraction` of the training images in the split `THRESHOLDS`.

    Returns the items unchanged if no label has enough of these images, with and without it, to choose a
    threshold.
    """
    train = [replace(item, split=None) if item.split == "train" else item for item in items]
    held_out = _choose_held_out(train, contents, fraction, True, least=0) if fraction else set()
    chosen = [
        item
        for item, content in zip(train, contents, strict=True)
        if item.split is None and content in held_out
    ]
    counts = Counter(label for item in chosen for label in item.classes)
    usable = (min(count, len(chosen) - count) >= FEWEST_FOR_THRESHOLD for count in counts.values())
    if not any(usable):
        return list(items)
    return [
        replace(item, split=THRESHOLDS) if item.split == "train" and content in held_out else item
        for item, content in zip(items, contents, strict=True)
    ]


def usable_items(items: Sequence[Item], held_out: str) -> list[Item]:
    """Return the items that may be read with `data.held_out`, before decoding.

    'auto' returns all items, 'validation' all but test images, 'train' the training images of a source with a
    split. For a source without a split, 'train' returns all items with split None; see `training_items`.
    """
    if held_out == "validation":
        return [item for item in items if item.split != "test"]
    if held_out == "train" and is_split_by_source(items):
        return [replace(item, split="train") for item in items if item.split in ("train", None)]
    return [replace(item, split=None) for item in items] if held_out == "train" else list(items)


def training_items(
    items: Sequence[Item], contents: Sequence[str], fraction: float, is_multi: bool = False
) -> list[int]:
    """Return the indices of the items that `assign_splits` assigns to training."""
    split = assign_splits(items, contents, fraction, is_multi)
    return [index for index, item in enumerate(split) if item.split == "train"]


def is_split_by_source(items: Sequence[Item]) -> bool:
    """Return whether the source defines a held-out split for at least some images."""
    return not {item.split for item in items} <= {"train", None}


def _choose_held_out(
    items: Sequence[Item], contents: Sequence[str], fraction: float, is_multi: bool, least: int = 1
) -> set[str]:
    """Return the contents to hold out of the items without a split; whole groups if there are groups."""
    if any(item.group is not None for item in items):
        return _held_out_groups(items, contents, fraction, least)
    return (
        _held_out_multi_label(items, contents, fraction, least)
        if is_multi
        else _held_out(items, contents, fraction)
    )


def _held_out_groups(items: Sequence[Item], contents: Sequence[str], fraction: float, least: int) -> set[str]:
    """Return the contents of the groups to hold out, approximately `fraction` of the contents of each label.

    Groups are considered in the order of their hashes, and held out as long as none of their labels gets
    more than half a group too many and one group of each label remains for training. Groups with equal
    contents are one group.
    """
    units = _connect_groups(items, contents)
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (_, unit), own in units.items():
        # Images without a label count for a label of their own.
        labels[unit].update(dict.fromkeys(own or {""}, 1))
    totals, sizes = Counter[str](), Counter[str]()
    for counts in labels.values():
        totals.update(counts)
        sizes.update(dict.fromkeys(counts, 1))
    held_out, taken, chosen = set[str](), Counter[str](), Counter[str]()

    def fits(counts: Counter[str], share: float) -> bool:
        return all(
            chosen[label] + 1 < sizes[label] and taken[label] + count * share <= fraction * totals[label]
            for label, count in counts.items()
        )

    def hold_out_unit(unit: str) -> None:
        held_out.add(unit)
        taken.update(labels[unit])
        chosen.update(dict.fromkeys(labels[unit], 1))

    order = sorted(labels, key=lambda unit: hashlib.sha256(unit.encode("utf-8", "surrogateescape")).digest())
    for unit in order:
        if fits(labels[unit], 0.5):
            hold_out_unit(unit)
    for label in sorted(totals):
        if chosen[label] < least:
            candidates = [unit for unit in order if label in labels[unit] and fits(labels[unit], 0.0)]
            if candidates:
                hold_out_unit(min(candidates, key=lambda unit: labels[unit].total()))
    return {content for content, unit in units if unit in held_out}


def _connect_groups(items: Sequence[Item], contents: Sequence[str]) -> dict[tuple[str, str], set[str]]:
    """Return the labels of each (content, unit); a unit is a group, or several groups that share contents."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while parents.setdefault(key, key) != key:
            key = parents[key]
        return key

    undecided = [(item, content) for item, content in zip(items, contents, strict=True) if item.split is None]
    for item, content in undecided:
        if item.group is not None:
            one, other = sorted((root(f"group {item.group}"), root(content)), reverse=True)
            parents[other] = one
    units: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for item, content in undecided:
        units[content, root(content)].update(item.classes)
    return dict(units)


def _held_out(items: Sequence[Item], contents: Sequence[str], fraction: float) -> set[str]:
    """Return the contents to use for validation."""
    labels: dict[str, str] = {}
    for item, content in zip(items, contents, strict=True):
        if item.split is None:
            # Content with several labels counts for one class only.
            labels[content] = min(item.label, labels.get(content, item.label))
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for content, label in labels.items():
        classes[label].append(content)
    counts = held_out_counts({label: len(members) for label, members in classes.items()}, fraction)
    return {content for label, members in classes.items() for content in sorted(members)[: counts[label]]}


def _held_out_multi_label(
    items: Sequence[Item], contents: Sequence[str], fraction: float, least: int = 1
) -> set[str]:
    """Do the same as `_held_out` for any number of labels; a content has the labels of all its items."""
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for item, content in zip(items, contents, strict=True):
        if item.split is None:
            labels[content].update(item.classes)
    return hold_out(labels, fraction, least)


def held_out_counts(sizes: Mapping[str, int], fraction: float) -> dict[str, int]:
    """Return the number of held-out images of each class, by the sizes of the classes.

    Each is `fraction` of the class, rounded down or up, so that classes of equal size differ by at most one
    and the total is `fraction` of all, rounded. Then a class of two or more images gets at least one on each
    side, which can change the total, and a class of one image holds out none.
    """
    quotas = {label: fraction * size for label, size in sizes.items()}
    counts = {label: math.floor(quota) for label, quota in quotas.items()}
    # From the sum of the sizes, because a sum of fractions depends on the order of the classes.
    left = round(fraction * sum(sizes.values())) - sum(counts.values())
    by_remainder = sorted(quotas, key=lambda label: (counts[label] - quotas[label], label))
    for label in by_remainder[:left]:
        counts[label] += 1
    return {label: min(max(counts[label], min(1, size - 1)), size - 1) for label, size in sizes.items()}


def hold_out(labels: Mapping[str, Set[str]], fraction: float, least: int = 1) -> set[str]:
    """Return the contents to hold out: approximately `fraction` of the contents of each label.

    This is the iterative stratification of Sechidis, Tsoumakas and Vlahavas ("On the Stratification of
    Multi-Label Data", ECML PKDD 2011) without random numbers. Labels are processed in the order of their
    number of remaining images, fewest first. The images of a label with the lowest hashes are held out, so
    that few change sides when images are added.

    labels: labels of each content, by its hash. If a label has two or more contents, at least one is not held
    out and at least `least` are held out, unless labels that were processed before prevent it. Contents
    without a label fill up the total.
    """
    totals = Counter(label for own_labels in labels.values() for label in own_labels)
    held_out: set[str] = set()
    counts: Counter[str] = Counter()
    waiting = set(labels)
    while left := Counter(label for content in waiting for label in labels[content]):
        label = min(left, key=lambda name: (left[name], name))
        group = sorted(content for content in waiting if label in labels[content])
        missing = max(_rounded(fraction * totals[label]), min(least, totals[label] - 1)) - counts[label]
        for content in group:
            if missing > 0 and all(counts[name] + 1 < totals[name] for name in labels[content]):
                held_out.add(content)
                counts.update(labels[content])
                missing -= 1
        waiting.difference_update(group)
    unlabelled = _rounded(fraction * len(labels)) - len(held_out)
    return held_out | set(sorted(waiting)[: max(0, unlabelled)])


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)
