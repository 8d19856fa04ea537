"""Splits within folder names: `asl_alphabet_train`, `trainA`, `test_cats`.

Assigns splits to top-level folders with a common stem, or returns a `LayoutPlan` if each name combines a
split and a class. Raises `Ambiguous` if names only mention splits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.data.readers.branches import Branch
from trainer.data.readers.planned import OUTSIDE_CLASSES, Ambiguous, Aside, ClassFolder, LayoutPlan
from trainer.data.readers.read_result import list_folder, split_among_words, split_and_label


def with_splits_of_pairs(branches: Sequence[Branch]) -> list[Branch]:
    """Return `branches`, with splits for those that differ only in a split word: `my_train`, `my_test`."""
    splits: defaultdict[str, dict[str, Branch]] = defaultdict(dict)
    for branch in branches:
        if branch.split is None and (part := split_and_label(branch.name)):
            splits[part[1].lower()][part[0]] = branch
    pairs = [found for found in splits.values() if len(found) > 1]
    # With several pairs each pair is a class, see `splits_in_names`.
    found = {branch.folder: split for split, branch in pairs[0].items()} if len(pairs) == 1 else {}
    return [replace(branch, split=found.get(branch.folder, branch.split)) for branch in branches]


def splits_in_names(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read `train_cats`, `train_dogs`, `test_cats` and `test_dogs`."""
    parts = [split_and_label(branch.name) for branch in branches if not branch.folders]
    pairs = {part for part in parts if part is not None}
    splits, labels = {split for split, _ in pairs}, {label for _, label in pairs}
    if "train" not in splits or len(splits) < 2 or len(labels) < 2 or len(pairs) != len(branches):
        return None
    if pairs != {(split, label) for split in splits for label in labels}:
        return None
    plan = LayoutPlan(listed=[base], aside=[Aside(tuple(list_folder(base)[1]), OUTSIDE_CLASSES)])
    plan.classes = [
        ClassFolder(branch.folder, label, split)
        for branch, part in zip(branches, parts, strict=True)
        if part is not None
        for split, label in [part]
    ]
    return plan


def require_no_mentions(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Return None. Raises Ambiguous if at least half of the folders with images mention differing splits."""
    mentions = {branch: split_among_words(branch.name) for branch in branches if branch.has_pictures}
    mentioning = [branch for branch, split in mentions.items() if split]
    # Many classes may include a train station and a test tube.
    if len(set(mentions.values()) - {None}) > 1 and 2 * len(mentioning) >= len(mentions):
        raise Ambiguous(
            "The names of several folders mention splits: if they are splits, name them train, validation "
            "and test, with the same class folders in each",
            mentioning,
        )
    return None
