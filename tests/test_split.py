"""The split: by content, about a fraction of every class, and what the source says is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_data import digests, items_of

from trainer.data.items import Item
from trainer.data.split import assign_splits


def many(count: int, labels: Sequence[str] = ("a", "b")) -> tuple[list[Item], list[str]]:
    items = [Item(str(index), labels[index % len(labels)], None, Path("x")) for index in range(count)]
    return items, digests(*range(count))


def held_out(items: Sequence[Item]) -> set[str]:
    return {item.name for item in items if item.split == "validation"}


def test_split_takes_about_the_fraction_of_every_class() -> None:
    items, contents = many(4000)
    split = assign_splits(items, contents, 0.25)
    for label in ("a", "b"):
        share = np.mean([item.split == "validation" for item in split if item.label == label])
        assert abs(share - 0.25) < 0.03
    assert [replace(item, split=None) for item in split] == items


def test_split_keeps_images_where_they_are_when_others_are_added_or_reordered() -> None:
    items, contents = many(600)
    before = held_out(assign_splits(items[:200], contents[:200], 0.2))
    after = held_out(assign_splits(items[::-1], contents[::-1], 0.2))
    assert before == after & {item.name for item in items[:200]}


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_split_leaves_no_side_empty_where_a_class_has_two_images(fraction: float) -> None:
    items, contents = many(4)
    split = assign_splits(items, contents, fraction)
    sides = {(item.label, item.split) for item in split}
    assert len(sides) == 4


def test_split_of_a_tiny_class_looks_only_at_images_without_a_split() -> None:
    contents = sorted(digests(*range(5)))
    items = items_of(("a", "test", ""), ("a", None, ""), ("a", None, ""), ("a", None, ""), ("a", "test", ""))
    for fraction in (0.001, 0.999):
        split = assign_splits(items, contents, fraction)
        assert {item.split for item in split[1:4]} == {"train", "validation"}


def test_split_keeps_equal_images_together_even_in_tiny_classes() -> None:
    items = items_of(("a", None, ""), ("a", None, ""), ("b", None, ""), ("b", None, ""))
    for fraction in (0.001, 0.5, 0.999):
        split = assign_splits(items, digests(1, 2, 1, 3), fraction)
        assert split[0].split == split[2].split


def test_split_that_the_source_names_is_kept_and_train_alone_is_divided() -> None:
    items, contents = many(100)
    named = [replace(item, split="test" if index < 10 else "train") for index, item in enumerate(items)]
    assert assign_splits(named, contents, 0.2) == named
    only_train = [replace(item, split="train") for item in items]
    assert held_out(assign_splits(only_train, contents, 0.2)) == held_out(assign_splits(items, contents, 0.2))
    open_ones = [replace(item, split="test") if index < 10 else item for index, item in enumerate(items)]
    assert {item.split for item in assign_splits(open_ones, contents, 0.2)} == {"train", "validation", "test"}
