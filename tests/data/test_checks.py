"""Checks of a dataset: rejected images, duplicates, missing classes and empty splits."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from helpers.small_data import items_of, load, png, put, two_splits

from trainer.data.checks import (
    find_duplicates,
    require_classes,
    require_few_rejected,
    require_full_splits,
    require_images,
    warnings_of,
)
from trainer.data.items import Item, Rejection
from trainer.errors import DataError


def test_damaged_files_are_rejected_with_reasons_up_to_the_limit(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    folder, whole = root / "train" / "cats", png(99, 64)
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    put(folder / "a-bomb.png", whole[:16] + struct.pack(">II", 40000, 40000) + whole[24:])
    put(folder / "b-empty.png", b"")
    put(folder / "c-text.jpg", b"hello, I am text")
    put(folder / "d-short.png", whole[:2000])
    put(folder / "e-flipped.png", bytes(flipped))
    put(folder / "f-new.jxl", b"\0\0\0\x0cJXL \r\n\x87\n")
    rejected = load(root, tmp_path / "cache", max_rejected=0.5).rejected
    assert [(Path(one.name).name, one.reason) for one in rejected] == [
        ("a-bomb.png", "too large: declares 40000 x 40000 pixels, over the limit of 100000000 pixels"),
        ("b-empty.png", "empty file"),
        ("c-text.jpg", "not an image: starts with b'hello, I'"),
        ("d-short.png", "truncated: the PNG ends early"),
        ("e-flipped.png", "damaged: the PNG cannot be decoded"),
        ("f-new.jxl", "unsupported format: JPEG XL"),
    ]
    with pytest.raises(DataError, match=r"6 of 24 images cannot be used: train/cats/a-bomb.png \(too large"):
        load(root, tmp_path / "cache", max_rejected=0.2)


def test_rejections_are_reported_before_the_error(tmp_path: Path) -> None:
    root, reported = two_splits(tmp_path / "data"), list[Rejection]()
    put(root / "train" / "cats" / "x.png", b"")
    with pytest.raises(DataError, match="1 of 19 images"):
        load(root, tmp_path / "cache", reported)
    assert reported == [Rejection("train/cats/x.png", "empty file")]


def test_files_that_are_not_images_do_not_count_as_damaged() -> None:
    bad = [Rejection(str(index), "empty file") for index in range(2)]
    other = [Rejection(f"{index}.txt", "not an image type", damaged=False) for index in range(50)]
    require_few_rejected(200, bad + other, 0.01)
    with pytest.raises(DataError, match="2 of 199 images"):
        require_few_rejected(199, bad + other, 0.01)
    with pytest.raises(DataError):
        require_few_rejected(1000, bad, 0.0)
    require_images(items_of(("a", None, "")), other, "here")


def test_same_image_with_another_label_in_validation_is_an_error(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    put(root / "validation" / "dogs" / "same.png", (root / "train" / "cats" / "1.png").read_bytes())
    with pytest.raises(DataError, match=r"1 image: train/cats/1\.png and validation/dogs/same\.png"):
        load(root, tmp_path / "cache")


def test_same_image_in_both_splits_is_a_warning_with_a_count(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    put(root / "validation" / "cats" / "same.png", (root / "train" / "cats" / "1.png").read_bytes())
    dataset = load(root, tmp_path / "cache")
    assert dataset.warnings == ("1 image appears in train and validation; see dataset.json",)
    assert dataset.summary["duplicates_across_splits"] == {
        "count": 1,
        "images": [
            [
                {"split": "train", "label": "cats", "name": "train/cats/1.png"},
                {"split": "validation", "label": "cats", "name": "validation/cats/same.png"},
            ]
        ],
    }


def test_duplicates_and_contradicting_labels_are_distinguished() -> None:
    items = items_of(
        ("cats", "train", ""),
        ("cats", "test", ""),
        ("dogs", "train", ""),
        ("cats", "train", ""),
        ("cats", "train", ""),
        ("cats", "validation", ""),
        ("dogs", "test", ""),
    )
    duplicates = find_duplicates(items, ["1", "1", "2", "2", "3", "4", "4"])
    assert [[item.name for item in group] for group in duplicates.across_splits] == [["a", "b"], ["f", "g"]]
    assert [[item.name for item in group] for group in duplicates.contradicting] == [["c", "d"]]
    assert warnings_of(duplicates) == (
        "1 image appears in train and test; see dataset.json",
        "1 image appears in validation and test; see dataset.json",
        "1 image has several labels within a split, such as c and d; see dataset.json",
    )
    assert warnings_of(find_duplicates(items, list("1234567"))) == ()
    # One image repeated thousands of times takes no noticeable time.
    many = items_of(*[("cats", "train", ""), ("dogs", "test", "")] * 10_000)
    with pytest.raises(DataError, match=r"Received: 1 image: "):
        find_duplicates(many, ["same"] * 20_000)


def test_class_without_a_decodable_image_is_named(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    put(root / "train" / "birds" / "1.png", b"chirp")
    with pytest.raises(DataError, match=r"A class has no image that can be decoded.*birds"):
        load(root, tmp_path / "cache", max_rejected=0.5)


@pytest.mark.parametrize("lacking", ["train", "validation", "test"])
def test_class_that_is_missing_in_a_split_is_named(lacking: str) -> None:
    items = [
        Item(f"{split}/{label}", label, split, Path("x"))
        for split in ("train", "validation", "test")
        for label in ("cats", "dogs")
        if (split, label) != (lacking, "dogs")
    ]
    with pytest.raises(DataError, match=rf"none in {lacking}\. .*dogs"):
        require_full_splits(items)


def test_single_class_is_an_error_and_two_are_not() -> None:
    with pytest.raises(DataError, match=r"only one class.*Received: cats"):
        require_classes(["cats"], ["cats"])
    require_classes(["cats", "dogs"], ["cats", "dogs"])


def test_source_without_images_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "data" / "notes.txt", b"x")
    reported = list[Rejection]()
    with pytest.raises(DataError, match=r"no images\. .* with 1 other file, such as notes\.txt"):
        load(tmp_path / "data", tmp_path / "cache", reported)
    assert len(reported) == 1


def test_source_needs_training_and_held_out_images() -> None:
    with pytest.raises(DataError, match="no images in train"):
        require_full_splits(items_of(("a", "test", ""), ("b", "test", "")))
    with pytest.raises(DataError, match="no images in validation"):
        require_full_splits(items_of(("a", "train", ""), ("b", "train", "")))
