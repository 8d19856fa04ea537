"""Label tables as written by people and other tools: images and classes read from them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.layout_files import PNG, put, read_all, reasons

from trainer.data.readers.tables import split_labels
from trainer.errors import DataError

CATS_DOGS = {(None, "cat"): 3, (None, "dog"): 3}
PARTED = {("train", "cat"): 3, ("train", "dog"): 3, ("test", "cat"): 3, ("test", "dog"): 3}
NAMES = [f"images/{number}.png" for number in range(6)]
LABELS = ["cat", "dog"] * 3


def rows(header: str, row: str, names: list[str] | None = None, **formats: str) -> str:
    """Return a table with a row per name, formatted with {path}, {name}, {id}, {label} and {number}."""
    lines = [header] if header else []
    for number, path in enumerate(names or NAMES):
        name = path.rpartition("/")[2]
        lines.append(
            row.format(
                path=path, name=name, id=name.rpartition(".")[0], label=LABELS[number % 6], number=number
            )
        )
    return "\n".join(lines) + "\n"


def objects(row: dict[str, object], names: list[str] | None = None) -> str:
    listed = [
        {key: path if value is None else value for key, value in row.items()} | {"label": LABELS[number % 6]}
        for number, path in enumerate(names or NAMES)
    ]
    return "".join(json.dumps(value) + "\n" for value in listed)


SPLIT_NAMES = [f"{split}/{number}.png" for split in ("train", "test") for number in range(6)]
CLASS_NAMES = [f"{s}/{c}/{n}.png" for s in ("train", "test") for n in "012" for c in ("cat", "dog")]
HAM = [f"HAM10000_images_part_{1 + number % 2}/ISIC_002741{number}.jpg" for number in range(6)]

READ: dict[str, tuple[dict[str, str | bytes], list[str], dict[tuple[str | None, str], int]]] = {
    "path, label": ({"labels.csv": rows("path,label", "{path},{label}")}, NAMES, CATS_DOGS),
    "label, path": ({"labels.csv": rows("label,path", "{label},{path}")}, NAMES, CATS_DOGS),
    "image, target": ({"a.csv": rows("image,target", "{name},{label}")}, NAMES, CATS_DOGS),
    "filename, class": ({"a.csv": rows("filename,class", "{name},{label}")}, NAMES, CATS_DOGS),
    "id, breed": ({"labels.csv": rows("id,breed", "{id},{label}")}, NAMES, CATS_DOGS),
    "Image_Path, Class Name": ({"a.csv": rows("Image_Path,Class Name", "{path},{label}")}, NAMES, CATS_DOGS),
    "image_id, dx in two folders": (
        {"HAM10000_metadata.csv": rows(
            "lesion_id,image_id,dx,dx_type,age,sex", "HAM_{number},{id},{label},histo,80.0,male", HAM)},
        HAM, CATS_DOGS,
    ),
    "an index without a name": ({"a.csv": rows(",file,label", "{number},{name},{label}")}, NAMES, CATS_DOGS),
    "pandas' index": ({"a.csv": rows("Unnamed: 0,file,label", "{number},{name},{label}")}, NAMES, CATS_DOGS),
    "tabs": ({"labels.tsv": rows("path\tlabel", "{path}\t{label}")}, NAMES, CATS_DOGS),
    "Excel's first line": ({"a.csv": rows("sep=;\r\npath;label", "{path};{label}")}, NAMES, CATS_DOGS),
    "Excel's UTF-16": (
        {"a.csv": rows("sep=\t\r\nLabel\tName", "{label}\t{name}").encode("utf-16")}, NAMES, CATS_DOGS),
    "a byte-order mark": ({"a.csv": rows("\ufefflabel,path", "{label},{path}")}, NAMES, CATS_DOGS),
    "commas in labels": (
        {"a.csv": rows("path;label", "{path};{label}, tabby")}, NAMES,
        {(None, "cat, tabby"): 3, (None, "dog, tabby"): 3},
    ),
    "commas in labels without a header": (
        {"a.csv": rows("", "{path};{label}, tabby")}, NAMES,
        {(None, "cat, tabby"): 3, (None, "dog, tabby"): 3},
    ),
    "a number and a name of the class": (
        {"a.csv": "path,label,class_name\n" + "".join(
            f"{path},{number % 2},{LABELS[number]}\n" for number, path in enumerate(NAMES))},
        NAMES, CATS_DOGS,
    ),
    "a column of splits": (
        {"a.csv": "image,label,split\n" + "".join(
            f"{path},{LABELS[n % 6]},{path.partition('/')[0]}\n" for n, path in enumerate(SPLIT_NAMES))},
        SPLIT_NAMES, PARTED,
    ),
    "a column of folds": (
        {"a.csv": "image,label,fold\n" + "".join(
            f"{path},{LABELS[number]},{number % 5}\n" for number, path in enumerate(NAMES))},
        NAMES, CATS_DOGS,
    ),
    "splits as folders in the paths": ({"a.csv": rows("path,label", "{path},{label}", SPLIT_NAMES)},
                                       SPLIT_NAMES, PARTED),
    "a table for each split": (
        {"train.csv": rows("path,label", "{path},{label}", SPLIT_NAMES[:6]),
         "test_labels.csv": rows("path,label", "{path},{label}", SPLIT_NAMES[6:])},
        SPLIT_NAMES, PARTED,
    ),
    "the same ids in both splits": (
        {"train.csv": rows("id,label", "{id},{label}", SPLIT_NAMES[:6]),
         "test.csv": rows("id,label", "{id},{label}", SPLIT_NAMES[6:])},
        SPLIT_NAMES, PARTED,
    ),
    "Kaggle's four files": (
        {"train.csv": rows("image_id,label", "{id},{label}", SPLIT_NAMES[:6]),
         "sample_submission.csv": rows("image_id,label", "{id},cat", SPLIT_NAMES[6:])},
        SPLIT_NAMES, CATS_DOGS,
    ),
    "Hugging Face's imagefolder": (
        {"metadata.csv": rows("file_name,label", "{path},{label}")}, NAMES, CATS_DOGS),
    "Hugging Face's, in each split": (
        {"train/metadata.csv": rows("file_name,label", "{name},{label}", SPLIT_NAMES[:6]),
         "test/metadata.csv": rows("file_name,label", "{name},{label}", SPLIT_NAMES[6:])},
        SPLIT_NAMES, PARTED,
    ),
    "Hugging Face's lines of JSON": ({"metadata.jsonl": objects({"file_name": None})}, NAMES, CATS_DOGS),
    "a list of one label": ({"a.csv": rows("path,labels", "{path},['{label}']")}, NAMES, CATS_DOGS),
    "one column a class": (
        {"truth.csv": "image,cat,dog\n" + "".join(
            f"{number},{1.0 - number % 2},{float(number % 2)}\n" for number in range(6))},
        NAMES, CATS_DOGS,
    ),
    "paths of Windows": (
        {"a.csv": rows("path,label", "images\\{name},{label}")}, NAMES, CATS_DOGS),
    "column names without a meaning": (
        {"a.csv": rows("foo,label", "{name},{label}")}, NAMES, CATS_DOGS),
    "labels that are also names of files": (
        {"a.csv": "label,id\n" + "".join(f"{number % 2},{number}\n" for number in range(6))}, NAMES,
        {(None, "0"): 3, (None, "1"): 3},
    ),
    "in a folder of its own": (
        {"annotations/labels.csv": rows("image,label", "{name},{label}")}, NAMES, CATS_DOGS),
    "two tables that agree": (
        {"a.csv": rows("path,label", "{path},{label}"), "b.csv": rows("id,label", "{id},{label}")},
        NAMES, CATS_DOGS,
    ),
    "images that are there twice": (
        {"m.csv": rows("image_id,dx", "{id},{label}", HAM)},
        [*HAM, *(f"copy/{name}" for name in HAM)], CATS_DOGS),
    "bars between the cells": ({"a.csv": rows("path|label", "{path}|{label}")}, NAMES, CATS_DOGS),
    "a table of something else beside those of the splits": (
        {"Train.csv": rows("path,class", "{path},{label}", SPLIT_NAMES[:6]),
         "Test.csv": rows("path,class", "{path},{label}", SPLIT_NAMES[6:]),
         "Meta.csv": rows("path,class", "{path},{label}", ["meta/0.png", "meta/1.png"])},
        [*SPLIT_NAMES, "meta/0.png", "meta/1.png"], PARTED,
    ),
    "class folders of which a table lists some": (
        {"train.csv": rows("path,label", "{path},{label}", CLASS_NAMES[:6])}, CLASS_NAMES, PARTED,
    ),
    "class folders with what a model said": (
        {"predictions.csv": rows("path,label", "{path},dog", ["cat/0.png", "cat/1.png", "cat/2.png"])},
        [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(3)], CATS_DOGS,
    ),
    "Vertex AI's": (
        {"import.csv": rows("", "training,{path},{label}")}, NAMES,
        {("train", "cat"): 3, ("train", "dog"): 3}),
    "class folders with a table of little": (
        {"notes.csv": "file,label\ncat/0.png,fluffy\n"},
        [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(3)], CATS_DOGS,
    ),
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, str], list[str], str]] = {
    "no column of labels": (
        {"metadata.csv": rows("image,age,sex", "{name},80,male", HAM)}, HAM,
        r"metadata\.csv is not used: no column has the name of a label column \(image, age, sex\)"),
    "two columns of labels": (
        {"list.csv": rows("image,species,breed", "{name},{label},{number}")}, NAMES,
        r"several columns could be the label \(species, breed\)"),
    "two tables that disagree": (
        {"a.csv": rows("path,species", "{path},{label}"), "b.csv": rows("path,breed", "{path},b{number}")},
        NAMES,
        r"Two tables have different labels.*a\.csv \(cat\) and b\.csv:2 \(b0\)"),
    "images that are not there": (
        {"a.csv": rows("path,label", "other/{name}x,{label}")}, NAMES,
        r"no image in its column path exists \(first: other/0\.pngx\); use paths"),
    "several ones a row": ({"a.csv": rows("image,cat,dog", "{id},1,1")}, NAMES, "not used: no column has"),
    "parts beside a table": (
        {"metadata.csv": rows("image,site", "{name},arm")},
        [f"images_part_{1 + number % 2}/{number}.png" for number in range(6)], r"metadata\.csv is not used"),
}  # fmt: skip


def build(root: Path, case: tuple[dict[str, str | bytes], list[str]]) -> Path:
    put(root, *case[1])
    for name, text in case[0].items():
        put(root, name, data=text if isinstance(text, bytes) else text.encode())
    return root


@pytest.mark.parametrize("case", READ)
def test_table_defines_labels_and_splits_of_its_images(tmp_path: Path, case: str) -> None:
    tables, names, expected = READ[case]
    read = read_all(build(tmp_path, (tables, names)), "auto")
    assert Counter((item.split, item.label) for item in read.items) == expected
    assert not [rejection for rejection in read.rejections if rejection.damaged]


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_table_is_an_error_with_the_reason(tmp_path: Path, case: str) -> None:
    tables, names, message = REFUSED[case]
    with pytest.raises(DataError, match=f"(?s){message}") as error:
        read_all(build(tmp_path, (dict(tables), names)), "auto")
    assert "Received: " in str(error.value)


@pytest.mark.parametrize(
    "cell",
    ["cat;dog", "cat|dog", "['cat', 'dog']", '"[""cat"", ""dog""]"', '"cat,dog"', "cat dog", "cat/dog"],
)
def test_two_labels_in_one_cell_are_not_a_class(tmp_path: Path, cell: str) -> None:
    cell = f'"{cell}"' if cell.startswith("['") else cell
    put(tmp_path, *NAMES, "images/two.png")
    (tmp_path / "a.csv").write_text(rows("path,label", "{path},{label}") + f"images/two.png,{cell}\n")
    read = read_all(tmp_path, "auto")
    assert Counter((item.split, item.label) for item in read.items) == CATS_DOGS
    (reason,) = (reason for reason in reasons(read.rejections).values() if reason[1])
    assert reason[0].startswith("several labels in one cell: ")


def test_unusable_row_is_rejected_with_its_line(tmp_path: Path) -> None:
    put(tmp_path, *NAMES, "a/twice.png")
    put(tmp_path, "b/twice.png", data=PNG + b"other")
    text = rows("id,label", "{id},{label}") + "\ngone,cat\ntwice,cat\n5\n3,\n"
    (tmp_path / "labels.csv").write_text(text)
    read = read_all(tmp_path, "auto")
    damaged = {name: reason for name, (reason, is_damaged) in reasons(read.rejections).items() if is_damaged}
    assert damaged == {
        "labels.csv:9": "no such file: gone",
        "labels.csv:10": "ambiguous name: several images are called twice: a/twice.png, b/twice.png",
        "labels.csv:11": "wrong number of cells: 1 for 2 columns",
        "labels.csv:12": "no label",
    }


WARNED: dict[str, tuple[dict[str, str], list[str], list[str]]] = {
    "a table of something else": (
        {"scores.csv": "id,score\n1,0.5\n"}, [f"{label}/{n}.png" for label in "ab" for n in range(3)],
        [r"scores\.csv is not used: no column has the name of a label column \(id, score\)"]),
    "a form for answers": (
        {"a.csv": rows("id,label", "{id},{label}"), "sample_submission.csv": rows("id,label", "{id},cat")},
        NAMES,
        [r"sample_submission\.csv is not used: a submission form"]),
    "images that no row lists": (
        {"a.csv": rows("path,label", "{path},{label}")}, [*NAMES, "images/x.png", "images/y.png"],
        [r"not used: 2 images not listed in a\.csv, such as images/x\.png"]),
    "few rows beside class folders": (
        {"notes.csv": "file,label\ncat/0.png,fluffy\n"},
        [f"{label}/{n}.png" for label in ("cat", "dog") for n in "012"],
        [r"notes\.csv is not used: it lists only 1 of 6 images"]),
    "a table that contradicts the folders": (
        {"a.csv": "file,label\n" + "".join(f"{c}/{n}.png,{n}\n" for c in ("cat", "dog") for n in "012")},
        [f"{label}/{n}.png" for label in ("cat", "dog") for n in "012"],
        [r"the classes are the labels in a\.csv, not the folders"]),
    "a column of splits in other words": (
        {"a.csv": rows("path,label,is_valid", "{path},{label},{number}")}, NAMES,
        [r"a\.csv: column is_valid is not used as split"]),
    "a table of no split": (
        {"train.csv": rows("path,label", "{path},{label}", SPLIT_NAMES[:6]),
         "test.csv": rows("path,label", "{path},{label}", SPLIT_NAMES[6:]),
         "all.csv": rows("path,label", "{path},{label}", SPLIT_NAMES)},
        SPLIT_NAMES,
        [r"all\.csv is not used: it belongs to no split, unlike test\.csv, train\.csv"]),
    "paths that go up": ({"lists/a.csv": rows("path,label", "../{path},{label}")}, NAMES, []),
    "a table that is used": ({"a.csv": rows("path,label", "{path},{label}")}, NAMES, []),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNED)
def test_unused_table_beside_images_causes_a_warning_with_the_reason(tmp_path: Path, case: str) -> None:
    tables, names, patterns = WARNED[case]
    warnings = read_all(build(tmp_path, (dict(tables), names)), "auto").warnings
    assert len(warnings) == len(patterns)
    for pattern, warning in zip(patterns, warnings, strict=True):
        assert re.search(pattern, warning), warnings


def test_cell_with_a_deeply_nested_list_is_one_label() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert split_labels(deep, [deep]) == [deep]


@pytest.mark.parametrize(
    "cell",
    [
        """["O'Neill's", "cat"]""",
        """["O'Neill's", 'cat']""",
        r"""['O\'Neill\'s', 'cat']""",
    ],
)
def test_apostrophe_in_a_list_of_labels_is_part_of_the_label(cell: str) -> None:
    assert split_labels(cell, [cell]) == ["O'Neill's", "cat"]


def test_list_of_labels_in_single_or_double_quotes_is_split() -> None:
    assert split_labels("['big, dog', 'cat']", []) == ["big, dog", "cat"]
    assert split_labels('["big, dog", null, 3]', []) == ["big, dog", "None", "3"]
    assert split_labels(r"['a\d']", []) == [r"a\d"]  # no warning about the backslash
    assert split_labels("['cat', dog]", []) == ["['cat', dog]"]
