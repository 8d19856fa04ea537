"""Tables of data.exclude and data.relabel: images left out, other labels, and faults of the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.small_data import load, put, two_splits

from trainer.data.dataset import Dataset
from trainer.errors import DataError


def labels_of(dataset: Dataset) -> dict[str, str]:
    return {
        item.name: dataset.class_names[label]
        for split in dataset.splits.values()
        for item, label in zip(split.items, split.labels, strict=True)
    }


def corrected(tmp_path: Path, text: str, setting: str = "exclude", **settings: Any) -> Dataset:
    table = put(tmp_path / "table.csv", text.encode())
    root = two_splits(tmp_path / "data")
    return load(root, tmp_path / "cache", **{setting: str(table)}, **settings)


def test_excluded_images_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = corrected(tmp_path, "path,reason\ntrain/cats/0.png,blurred\ntrain/cats/0.png,twice\n")
    assert "train/cats/0.png" not in labels_of(dataset)
    assert len(dataset.train.items) == 11
    assert "1 image is left out by data.exclude" in dataset.warnings


def test_file_without_column_names_has_the_path_first(tmp_path: Path) -> None:
    dataset = corrected(tmp_path, "train/cats/0.png\ntrain/dogs/1.png\n")
    assert len(dataset.train.items) == 10
    relabelled = corrected(tmp_path, "train/cats/0.png,dogs\n", "relabel")
    assert labels_of(relabelled)["train/cats/0.png"] == "dogs"


def test_relabelled_image_has_the_new_label_and_the_digest_changes(tmp_path: Path) -> None:
    text = "path,label,new_label\ntrain/cats/0.png,cats,dogs\n"
    dataset = corrected(tmp_path, text, "relabel")
    assert labels_of(dataset)["train/cats/0.png"] == "dogs"
    assert "1 image is relabelled by data.relabel" in dataset.warnings
    assert dataset.digest != load(tmp_path / "data", tmp_path / "cache").digest


def test_exclusion_has_precedence_over_a_new_label(tmp_path: Path) -> None:
    row = "path,new_label\ntrain/cats/0.png,dogs\ntrain/cats/1.png,dogs\n"
    exclude = put(tmp_path / "exclude.csv", b"path\ntrain/cats/0.png\n")
    dataset = corrected(tmp_path, row, "relabel", exclude=str(exclude))
    assert "train/cats/0.png" not in labels_of(dataset)
    assert labels_of(dataset)["train/cats/1.png"] == "dogs"


def test_one_table_can_exclude_and_relabel(tmp_path: Path) -> None:
    row = "path,new_label\ntrain/cats/0.png,dogs\n"
    table = put(tmp_path / "both.csv", row.encode())
    dataset = corrected(tmp_path, row, "relabel", exclude=str(table))
    assert "train/cats/0.png" not in labels_of(dataset)


def test_some_unknown_names_are_a_warning_and_only_unknown_names_an_error(tmp_path: Path) -> None:
    dataset = corrected(tmp_path, "path\ntrain/cats/0.png\ntrain/cats/77.png\n")
    assert any("1 name is in data.exclude and not in the data" in warning for warning in dataset.warnings)
    with pytest.raises(DataError, match=r"None of the images .* such as train/cats/"):
        corrected(tmp_path, "path\ntrain/cat/0.png\n")


def test_name_that_a_spreadsheet_would_take_for_a_formula_is_recognized(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    (root / "train" / "cats" / "0.png").rename(root / "-0.png")
    (root / "train" / "-cats").mkdir()
    (root / "-0.png").rename(root / "train" / "-cats" / "0.png")
    put(
        root / "validation" / "-cats" / "0.png", (root / "validation" / "cats" / "0.png").read_bytes() + b"\0"
    )
    table = put(tmp_path / "table.csv", b"path,new_label\ntrain/cats/1.png,'-cats\n")
    dataset = load(root, tmp_path / "cache", relabel=str(table))
    assert labels_of(dataset)["train/cats/1.png"] == "-cats"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,new_label\ntrain/cats/0.png,dgs\n", "Did you mean dogs?"),
        ("path,new_label\ntrain/cats/0.png,\n", "a label that no image has"),
        ("path,new_label\ntrain/cats/0.png,dogs\ntrain/cats/0.png,cats\n", "two labels for an image"),
        ("path,reason\ntrain/cats/0.png,blurred\n", "no column new_label"),
        ("image,new_label\ntrain/cats/0.png,dogs\n", "no column path"),
        ("path,new_label\ntrain/cats/0.png\n", "too few cells"),
    ],
)
def test_faulty_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        corrected(tmp_path, text, "relabel")
    assert message in str(error.value)


def test_empty_table_changes_nothing(tmp_path: Path) -> None:
    for text in ("", "path,label,new_label\n"):
        for setting in ("exclude", "relabel"):
            dataset = corrected(tmp_path, text, setting)
            assert len(dataset.train.items) == 12
            assert dataset.warnings == ()


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file of images"):
        load(two_splits(tmp_path / "data"), tmp_path / "cache", exclude=str(tmp_path / "missing.csv"))


def test_new_labels_of_a_multi_label_image_are_separated(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data" / "images")
    rows = [
        f"images/{split}/{name}/{number}.png,{'validation' if split == 'validation' else 'train'},{label}"
        for split, count in (("train", 6), ("validation", 3))
        for name, label in (("cats", "cat"), ("dogs", "cat;dog"))
        for number in range(count)
    ]
    put(root.parent / "labels.csv", "\n".join(["path,split,labels", *rows, ""]).encode())
    table = put(tmp_path / "table.csv", b"path,new_label\nimages/train/cats/0.png,dog;cat\n")
    dataset = load(root.parent, tmp_path / "cache", labels="multi", relabel=str(table))
    row = [item.name for item in dataset.train.items].index("images/train/cats/0.png")
    assert dataset.train.labels[row].tolist() == [1, 1]
