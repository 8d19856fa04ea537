"""The train/validation split: by content, stratified by class, with splits of the source preserved."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.small_data import digests, items_of

from trainer.data.items import Item
from trainer.data.split import assign_splits, held_out_counts
from trainer.data.statistics import was_trained_on


def many(count: int, labels: Sequence[str] = ("a", "b")) -> tuple[list[Item], list[str]]:
    items = [Item(str(index), labels[index % len(labels)], None, Path("x")) for index in range(count)]
    return items, digests(*range(count))


def held_out(items: Sequence[Item]) -> set[str]:
    return {item.name for item in items if item.split == "validation"}


def test_split_holds_out_the_exact_fraction_of_every_class() -> None:
    items, contents = many(4000)
    split = assign_splits(items, contents, 0.25)
    for label in ("a", "b"):
        assert sum(item.split == "validation" for item in split if item.label == label) == 500
    assert [replace(item, split=None) for item in split] == items


@pytest.mark.parametrize(
    ("sizes", "fraction"),
    [([40] * 3, 0.15), ([50] * 6, 0.15), ([7] * 10, 0.2), ([1000, 50, 3], 0.1), ([2, 2, 2], 0.2)],
)
def test_classes_of_equal_size_have_equal_shares_within_one_image(sizes: list[int], fraction: float) -> None:
    for seed in range(20):
        labels = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
        items = [Item(str(index), label, None, Path("x")) for index, label in enumerate(labels)]
        split = assign_splits(items, digests(*((seed, index) for index in range(len(items)))), fraction)
        counts = Counter(item.label for item in split if item.split == "validation")
        for label, size in zip(map(str, range(len(sizes))), sizes, strict=True):
            assert abs(counts[label] - max(1.0, fraction * size)) < 1
        if min(sizes) * fraction >= 1:
            assert sum(counts.values()) == round(fraction * sum(sizes))


def test_list_of_trained_images_contains_those_held_out_by_a_later_run() -> None:
    moved = 0
    for seed in range(5):
        items, _ = many(6000, ("a", "a", "b"))
        contents = digests(*((seed, index) for index in range(6000)))
        first, later = (
            {contents[int(name)] for name in held_out(assign_splits(items[:count], contents[:count], 0.2))}
            for count in (5000, 6000)
        )
        trained = {content[:16] for content in contents[:5000] if content not in first}
        listed = {"trained": sorted(trained)[:200]}
        both = sorted(content for content in later if content[:16] in trained)
        assert was_trained_on(both, listed).all()
        assert not was_trained_on(sorted(first) + contents[5000:], listed).any()
        moved += len(both)
    assert moved


def test_split_does_not_depend_on_the_order_of_the_images() -> None:
    items, contents = many(600)
    before = held_out(assign_splits(items, contents, 0.2))
    assert held_out(assign_splits(items[::-1], contents[::-1], 0.2)) == before


def test_split_does_not_depend_on_the_order_of_the_classes_if_the_total_is_half_an_image() -> None:
    sizes = [18, 34, 33]  # a tenth is 8.5 or, added up in another order, 8.500000000000002
    counts = [
        held_out_counts({str(size): size for size in order}, 0.1) for order in itertools.permutations(sizes)
    ]
    assert all(count == counts[0] for count in counts)


def test_few_images_change_splits_when_others_are_added() -> None:
    items, contents = many(600)
    before = held_out(assign_splits(items[:400], contents[:400], 0.2))
    after = held_out(assign_splits(items, contents, 0.2))
    old = {item.name for item in items[:400]}
    assert len(before ^ (after & old)) <= 16


def test_image_with_two_labels_is_in_one_split() -> None:
    items, contents = many(40)
    twice = [*items, *(replace(item, name=f"copy {item.name}", label="c") for item in items[:10])]
    split = assign_splits(twice, [*contents, *contents[:10]], 0.3)
    assert [item.split for item in split[:10]] == [item.split for item in split[40:]]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_class_of_two_images_is_in_both_splits(fraction: float) -> None:
    items, contents = many(4)
    split = assign_splits(items, contents, fraction)
    sides = {(item.label, item.split) for item in split}
    assert len(sides) == 4


def test_split_of_a_small_class_considers_only_images_without_a_split() -> None:
    contents = sorted(digests(*range(5)))
    items = items_of(("a", "test", ""), ("a", None, ""), ("a", None, ""), ("a", None, ""), ("a", "test", ""))
    for fraction in (0.001, 0.999):
        split = assign_splits(items, contents, fraction)
        assert {item.split for item in split[1:4]} == {"train", "validation"}


def test_split_keeps_equal_images_together_in_small_classes() -> None:
    items = items_of(("a", None, ""), ("a", None, ""), ("b", None, ""), ("b", None, ""))
    for fraction in (0.001, 0.5, 0.999):
        split = assign_splits(items, digests(1, 2, 1, 3), fraction)
        assert split[0].split == split[2].split


def test_split_of_the_source_is_kept_and_a_source_with_only_train_is_divided() -> None:
    items, contents = many(100)
    named = [replace(item, split="test" if index < 10 else "train") for index, item in enumerate(items)]
    assert assign_splits(named, contents, 0.2) == named
    only_train = [replace(item, split="train") for item in items]
    assert held_out(assign_splits(only_train, contents, 0.2)) == held_out(assign_splits(items, contents, 0.2))
    open_ones = [replace(item, split="test") if index < 10 else item for index, item in enumerate(items)]
    assert {item.split for item in assign_splits(open_ones, contents, 0.2)} == {"train", "validation", "test"}
