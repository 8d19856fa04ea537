"""Import files (CSV and JSON Lines): one image per row, and rejected rows with their reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.layout_files import PNG, put, read_layout, reasons, triples

from trainer.errors import DataError

CSV = """training,images/1.png,cat
VALIDATION,images/2.png,"big, dog"
unassigned,./images/3.png,cat
,images/4.png,cat

Test,{root}/images/5.png,dog
train,file://{root}/images/6%20x.png,dog
images/7.png,dog
images/7.png,cat
training,images/missing.png,cat
training,images/1.png,cat,dog
images/1.png,cat,dog
images/1.png
tarining,images/1.png,cat
training,images/1.png,
"""


def test_import_csv_is_read_row_by_row(tmp_path: Path) -> None:
    put(tmp_path, *(f"images/{name}.png" for name in ("1", "2", "3", "4", "5", "6 x", "7")))
    (tmp_path / "import.csv").write_text("\ufeff" + CSV.format(root=tmp_path), encoding="utf-8")
    items, rejections, layout = read_layout(tmp_path, "auto")
    assert layout == "import"
    assert triples(items) == [
        ("images/1.png", "cat", "train"),
        ("images/2.png", "big, dog", "validation"),
        ("images/3.png", "cat", None),
        ("images/4.png", "cat", None),
        ("images/5.png", "dog", "test"),
        ("images/6 x.png", "dog", "train"),
        ("images/7.png", "dog", None),
        ("images/7.png#import.csv:9", "cat", None),
    ]
    assert all(item.read() == PNG for item in items)
    wrong = (
        "not [ML_USE,]URI,label with one label, where ML_USE is training, validation, test or unassigned: "
    )
    assert reasons(rejections) == {
        "import.csv:10": ("no such file: images/missing.png", True),
        "import.csv:11": (wrong + "training, images/1.png, cat, dog", True),
        "import.csv:12": (wrong + "images/1.png, cat, dog", True),
        "import.csv:13": (wrong + "images/1.png", True),
        "import.csv:14": (wrong + "tarining, images/1.png, cat", True),
        "import.csv:15": ("no label", True),
    }


def json_line(uri: Any, label: Any, use: str | None = None, **more: Any) -> str:
    line: dict[str, Any] = {"imageGcsUri": uri, "classificationAnnotation": {"displayName": label}} | more
    if use:
        line["dataItemResourceLabels"] = {"aiplatform.googleapis.com/ml_use": use}
    return json.dumps(line)


def test_import_jsonl_is_read_line_by_line(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    lines = [
        json_line("1.png", "cat", "training"),
        json_line("2.png", "dog", "test"),
        json_line("2.png", "dog", "often"),
        json_line("1.png", None),
        json_line("1.png", "cat", classificationAnnotations=[{"displayName": "cat"}]),
        json_line("x" * 5000, "cat"),
        json_line("\0", "cat"),
        "{",
        "[]",
    ]
    path = tmp_path / "import.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    items, rejections, layout = read_layout(path, "auto")
    assert layout == "import"
    assert triples(items) == [("1.png", "cat", "train"), ("2.png", "dog", "test")]
    assert [rejection.name for rejection in rejections] == [f"import.jsonl:{line}" for line in range(3, 10)]
    assert all(rejection.damaged for rejection in rejections)
    assert "several labels" in reasons(rejections)["import.jsonl:5"][0]


def test_import_from_a_web_server_is_an_error_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "import.csv").write_text("https://example.com/1.png,cat\n")
    with pytest.raises(DataError, match=r"by gs:// URI.*import\.csv:1: "):
        read_layout(tmp_path, "auto")


@pytest.mark.parametrize("data", [b"1.png,caf\xe9\n", b"\xff\xfe1\0."], ids=["latin-1", "half a UTF-16"])
def test_import_file_that_is_not_text_is_an_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "import.csv").write_bytes(data)
    with pytest.raises(DataError, match="UTF-8"):
        read_layout(tmp_path / "import.csv", "auto")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("header", ["", "path{0}label\n", "ml_use{0}uri{0}Label\n"])
def test_import_csv_is_read_in_the_dialects_of_spreadsheets(
    tmp_path: Path, delimiter: str, encoding: str, header: str
) -> None:
    put(tmp_path, "images/1.png", "images/2.png")
    rows = "\nimages/1.png{0}ação\nimages/2.png{0}dog\nimages/3.png{0}dog\n"
    (tmp_path / "import.csv").write_text((header + rows).format(delimiter), encoding=encoding)
    items, rejections, layout = read_layout(tmp_path, "auto")
    assert layout == "import"
    assert triples(items) == [("images/1.png", "ação", None), ("images/2.png", "dog", None)]
    line = 4 + bool(header)
    assert reasons(rejections) == {f"import.csv:{line}": ("no such file: images/3.png", True)}


def test_table_without_labels_beside_class_folders_is_not_an_import_file(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "scores.csv").write_text("id,score\n1,0.5\n2,0.6\n")
    (tmp_path / "notes.csv").write_bytes("a,b\n".encode("utf-16"))
    assert read_layout(tmp_path, "auto")[2] == "folders"
    with pytest.raises(DataError, match=r"does not contain .*\.csv"):
        read_layout(tmp_path, "import")
