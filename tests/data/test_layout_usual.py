"""Common folder layouts: the classes and splits read from them, and ambiguous folders."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.layout_files import put, read_all

from trainer.errors import DataError

CATS_DOGS = {(None, "cats"): 3, (None, "dogs"): 3}
PARTED = {("train", "cats"): 3, ("train", "dogs"): 3, ("test", "cats"): 3, ("test", "dogs"): 3}
VALIDATED = {("train", "cats"): 3, ("train", "dogs"): 3, ("validation", "cats"): 3, ("validation", "dogs"): 3}


def images(*folders: str) -> list[str]:
    """Return three image names per folder, or per pattern with a "{}" for the number."""
    return [
        name.format(number) if "{}" in name else f"{name}/{number}.png"
        for name in folders
        for number in range(3)
    ]


def two(*folders: str) -> list[str]:
    return images(*(f"{folder}/{label}" for folder in folders for label in ("cats", "dogs")))


READ = {
    "classes alone": (images("cats", "dogs"), CATS_DOGS),
    "training_set and test_set": (two("training_set", "test_set"), PARTED),
    "nested twice": (two("seg_train/seg_train", "seg_test/seg_test") + images("seg_pred/seg_pred"), PARTED),
    "nested twice in a wrapper": (two("archive/seg_train/seg_train", "archive/seg_test/seg_test"), PARTED),
    "names with spaces and capitals": (two("Training Set", "TEST-SET"), PARTED),
    "trainval": (two("trainval", "test"), PARTED),
    "years": (two("train2017", "val2017"), VALIDATED),
    "images in between": (two("train/images", "test/images"), PARTED),
    "train_images": (two("train_images", "test_images"), PARTED),
    "dev": (two("train", "dev"), VALIDATED),
    "eval": (two("train", "eval"), VALIDATED),
    "holdout": (two("train", "holdout"), PARTED),
    "hold-out": (two("training", "hold-out"), PARTED),
    "Portuguese": (two("treino", "teste"), PARTED),
    "train alone": (two("train"), {("train", "cats"): 3, ("train", "dogs"): 3}),
    "files beside": ([*two("train", "valid"), "train.py", "README.md"], VALIDATED),
    "unlabelled test beside": (two("train", "val") + images("test1"), VALIDATED),
    "unlabelled test nested twice": (two("train", "val") + images("test/test"), VALIDATED),
    "flat val beside": (two("train", "test") + images("val"), PARTED),
    "foreign folder beside": (two("train", "test") + images("notebook_figures"), PARTED),
    "copy of itself beside": (two("train", "test", "chest/train", "chest/test"), PARTED),
    "set below a folder with others": ([*two("data/train", "data/test"), "docs/figure.png"], PARTED),
    "images beside annotations": (
        [*images("Images/cats", "Images/dogs"), "Annotation/cats/0.xml", "Annotation/dogs/0.xml"],
        CATS_DOGS,
    ),
    "a class called train and unlabelled images": (
        images("train", "car", "unlabelled"),
        {(None, "train"): 3, (None, "car"): 3},
    ),
    "splits inside the classes": (images("cats/train", "cats/test", "dogs/train", "dogs/test"), PARTED),
    "splits in the names of the folders": (
        images("train_cats", "train_dogs", "test_cats", "test_dogs"),
        PARTED,
    ),
    "splits at the end of the names": (
        images("cats-train", "dogs-train", "cats-test", "dogs-test"),
        PARTED,
    ),
    "numbered parts of one dataset": (
        two("part_1", "part_2"),
        {(None, "cats"): 6, (None, "dogs"): 6},
    ),
    "folds": (two("fold0", "fold1", "fold2"), {(None, "cats"): 9, (None, "dogs"): 9}),
    "labels in names": (
        images("train/cat.{}.jpg", "train/dog.{}.jpg", "test1/{}.jpg"),
        {("train", "cat"): 3, ("train", "dog"): 3},
    ),
    "labels in names, nested twice": (
        images("train/train/cat.{}.jpg", "train/train/dog.{}.jpg", "test1/test1/{}.jpg"),
        {("train", "cat"): 3, ("train", "dog"): 3},
    ),
    "labels in names of both splits": (
        images("train/cat.{}.jpg", "train/dog.{}.jpg", "val/cat.1{}.jpg", "val/dog.1{}.jpg"),
        {("train", "cat"): 3, ("train", "dog"): 3, ("validation", "cat"): 3, ("validation", "dog"): 3},
    ),
    "labels in names at the top": (images("cat.{}.png", "dog.{}.png"), {(None, "cat"): 3, (None, "dog"): 3}),
    "labels in names of one folder": (
        images("images/Abyssinian_{}.jpg", "images/great_pyrenees_{}.jpg"),
        {(None, "Abyssinian"): 3, (None, "great_pyrenees"): 3},
    ),
    "labels in names as Windows numbers them": (
        images("cat ({}).png", "dog ({}).png"),
        {(None, "cat"): 3, (None, "dog"): 3},
    ),
    "splits as one word of the names": (
        images(*(f"alphabet_{s}/alphabet_{s}/{c}" for s in ("train", "test") for c in "AB")),
        {("train", "A"): 3, ("train", "B"): 3, ("test", "A"): 3, ("test", "B"): 3},
    ),
    "splits as one word, the test unlabelled": (
        images("Final_Training/Images/0", "Final_Training/Images/1", "Final_Test/Images"),
        {("train", "0"): 3, ("train", "1"): 3},
    ),
    "splits in words joined by capitals": (two("trainData", "testData"), PARTED),
    "splits and classes joined by capitals": (
        images("trainA", "trainB", "testA", "testB"),
        {("train", "A"): 3, ("train", "B"): 3, ("test", "A"): 3, ("test", "B"): 3},
    ),
    "splits in a folder called train": (two("train/train", "train/test"), PARTED),
    "copy of the classes among them": (images("cats", "dogs", "pets/cats", "pets/dogs"), CATS_DOGS),
    "copy of all in a folder of its name": (
        images("pets/cats", "pets/dogs", "pets/pets/cats", "pets/pets/dogs"),
        CATS_DOGS,
    ),
    "splits nested twice beside a copy without": (
        [*two("pets/pets/train", "pets/pets/test"), *images("small/small/cats", "small/small/dogs")],
        PARTED,
    ),
    "labels in names beside annotations": (
        [*images("images/Abyssinian_{}.jpg", "images/pug_{}.jpg"), "annotations/list.txt"],
        {(None, "Abyssinian"): 3, (None, "pug"): 3},
    ),
    "splits of images beside those of annotations": (
        [*two("Data/CLS/train"), *images("Data/CLS/val"), "Notes/CLS/train/cats/0.xml"],
        {("train", "cats"): 3, ("train", "dogs"): 3},
    ),
    "words of splits in the names of a few classes": (
        images("train station", "test tube", "cat", "dog", "sea"),
        {(None, label): 3 for label in ("train station", "test tube", "cat", "dog", "sea")},
    ),
    "a vehicle called train": (
        images("train", "car", "bus"),
        {(None, "train"): 3, (None, "car"): 3, (None, "bus"): 3},
    ),
    "valid and invalid": (images("valid", "invalid"), {(None, "valid"): 3, (None, "invalid"): 3}),
    "classes with folders of their own": (
        images("cats/indoor", "cats/garden", "dogs/beach"),
        {(None, "cats"): 6, (None, "dogs"): 3},
    ),
    "one shared name below the classes": (
        images("apple/healthy", "apple/scab", "corn/healthy", "corn/rust"),
        {(None, "apple"): 6, (None, "corn"): 6},
    ),
    "unlabelled images beside classes": (images("cats", "dogs", "unlabeled"), CATS_DOGS),
    "hidden folders beside classes": (images("cats", "dogs", ".ipynb_checkpoints", ".net"), CATS_DOGS),
    "both ways to write an accent": (
        images("train/caf\u00e9", "train/p\u00e3o", "val/cafe\u0301", "val/pa\u0303o"),
        {
            ("train", "caf\u00e9"): 3,
            ("train", "p\u00e3o"): 3,
            ("validation", "caf\u00e9"): 3,
            ("validation", "p\u00e3o"): 3,
        },
    ),
}

REFUSED = {
    "splits without classes": (images("train", "test"), "no class folders"),
    "test beside classes": (images("cats", "dogs", "test"), "names of splits.*Received: test"),
    "validation beside classes": (images("cats", "dogs", "val"), "names of splits.*Received: val"),
    "a class like a split": (images("cats", "training_set"), "names of splits"),
    "train with folders beside classes": (images("train/steam", "train/diesel", "car", "bus"), "bus, car"),
    "splits that disagree": (
        images("train/steam", "train/diesel", "test/cats", "test/dogs"),
        "contain different class folders",
    ),
    "domains": (two("amazon/images", "dslr/images", "webcam/images"), "the same folders.*cats, dogs"),
    "the same folders beside a figure": (two("batch_one", "batch_two") + images("docs"), "the same folders"),
    "parts without classes": (images("images_part_1", "images_part_2"), "parts of one dataset"),
    "numbered folders": (images("images_001/images", "images_002/images"), "parts of one dataset"),
    "images and masks": (images("images", "masks"), "images, masks"),
    "several data sets": (
        two("pets/train", "pets/test") + images("cars/train/vw", "cars/train/bmw", "cars/test/vw"),
        "several data sets.*cars, pets",
    ),
    "wrapped in other names": (
        two("pets_100x100/pets/train", "pets_100x100/pets/test", "full/train", "full/test"),
        "several data sets.*full, pets_100x100",
    ),
    "spelled twice, nested twice": (two("Pets/Pets", "pets/Pets"), "the same folders"),
    "splits as one word without classes": (
        images("cars_train/cars_train", "cars_test/cars_test"),
        "no class folders",
    ),
    "names that mention splits": (
        images("rps-x", "rps-test-x-set", "rps-validation-set"),
        "contain names of splits",
    ),
    "names of two phones": (images("train/FB_IMG_{}.jpg", "train/received_{}.jpg"), "no class folders"),
    "names of a camera": (images("train/IMG_{}.jpg", "train/DSC_{}.jpg"), "no class folders"),
    "names of a day": (images("train/IMG_20200101_{}.jpg", "train/IMG_20200102_{}.jpg"), "no class folders"),
    "names that only some follow": (
        images("train/cat.{}.jpg", "train/dog.{}.jpg", "train/{}.jpg"),
        "no class folders",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_common_folder_layouts_define_classes_and_splits(tmp_path: Path, case: str) -> None:
    names, expected = READ[case]
    read = read_all(put(tmp_path, *names), "auto")
    assert read.layout == "folders"
    assert Counter((item.split, item.label) for item in read.items) == expected


@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_folders_are_an_error(tmp_path: Path, case: str) -> None:
    names, message = REFUSED[case]
    with pytest.raises(DataError, match=f"(?s){message}") as error:
        read_all(put(tmp_path, *names), "auto")
    assert "data.layout=folders" in str(error.value)
    assert "Received: " in str(error.value)


@pytest.mark.parametrize(
    "case", ["test beside classes", "domains", "parts without classes", "images and masks"]
)
def test_layout_folders_uses_every_folder_as_a_class(tmp_path: Path, case: str) -> None:
    names, _ = REFUSED[case]
    read = read_all(put(tmp_path, *names), "folders")
    assert {item.label for item in read.items} == {name.split("/")[0] for name in names}
    assert {item.split for item in read.items} == {None}


UNUSED = {
    "seg_pred": (two("seg_train", "seg_test") + images("seg_pred"), r"seg_pred/ \(3 images\).*no class"),
    "flat val": (two("train", "test") + images("val"), r"val/ \(3 images\).*no class folders"),
    "another folder": (two("train", "test") + images("more"), r"more/ \(3 images\).*rename it to train"),
    "hidden": (images("cats", "dogs", ".net"), r"\.net/ \(3 images\).*hidden"),
    "hidden in a split": (two("train", "val") + images("train/.net"), r"train/\.net/ \(3 images\).*hidden"),
    "unlabelled": (images("cats", "dogs", "unlabeled"), r"unlabeled/ \(3 images\)"),
    "at the top": (images("cats", "dogs", "{}.png"), r"3 images outside the class folders.*0\.png"),
    "copy of the classes": (
        [*images("cats", "dogs"), *(f"pets/{name}" for name in ("cats/0.png", "cats/1.png", "dogs/0.png"))],
        r"pets/ \(3 images\).*same names"),
    "beside the classes of a split": (two("train", "val") + images("train/{}.png"), r"3 images.*n/0\.png"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSED)
def test_unused_images_are_rejected_with_a_warning(tmp_path: Path, case: str) -> None:
    names, pattern = UNUSED[case]
    read = read_all(put(tmp_path, *names), "auto")
    (warning,) = read.warnings
    assert re.search(pattern, warning), warning
    assert len(read.rejections) == 3
    assert not any(rejection.damaged for rejection in read.rejections)


def test_ordinary_folders_cause_no_warning(tmp_path: Path) -> None:
    put(tmp_path, *two("train", "val", "test"), "train/readme.txt", ".git/x.png", "__MACOSX/train/cats/0.png")
    assert read_all(tmp_path, "auto").warnings == []


def test_folders_inside_a_class_that_may_be_classes_cause_a_warning(tmp_path: Path) -> None:
    put(tmp_path, *images("animals/cats", "animals/dogs", "site/logos", "tiny/images"))
    (warning,) = read_all(tmp_path, "auto").warnings
    assert "used as one class: animals/ (cats, dogs);" in warning


def test_archives_in_a_folder_are_an_error_of_their_own(tmp_path: Path) -> None:
    put(tmp_path, "train.zip", "test1.zip", data=b"PK")
    with pytest.raises(DataError, match=r"not unpacked.*Received: test1\.zip, train\.zip"):
        read_all(tmp_path, "auto")
