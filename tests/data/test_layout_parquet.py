"""Parquet files: images and labels per row, copied once, and files of different writers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.layout_files import PNG, put, reasons, triples
from pyarrow import parquet

from trainer.data.items import Item, Rejection
from trainer.data.progress import SilentProgress
from trainer.data.readers import read_layout
from trainer.data.readers.import_files import Buckets
from trainer.data.readers.parquet import Extraction
from trainer.errors import DataError, UsageError


def read(
    root: Path, layout: str = "auto", max_bytes: int = 1 << 20
) -> tuple[list[Item], list[Rejection], str]:
    extraction = Extraction(root.parent / "cache", max_bytes, SilentProgress())
    return read_layout(root, layout, Buckets(lambda uris: {}), extraction)[:3]


def write(path: Path, features: dict[str, Any] | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features:
        metadata = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({b"huggingface": metadata})
    parquet.write_table(table, path, row_group_size=2)
    return path


def images(*data: bytes | None) -> list[dict[str, Any]]:
    return [{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(data)]


HUGGING_FACE = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}


def test_hugging_face_dataset_is_read_with_class_names(tmp_path: Path) -> None:
    root = tmp_path / "data"
    rows = [PNG + bytes([number]) for number in range(5)]
    write(
        root / "data" / "train-00000-of-00001.parquet", HUGGING_FACE,
        label=[1, 0, 1, 1, 0], image=images(*rows), fine=[3, 3, 3, 3, 3],
    )  # fmt: skip
    write(root / "data" / "test-00000-of-00001.parquet", HUGGING_FACE, image=images(PNG), label=[0])
    put(root, "README.md", data=b"# pets")
    items, rejections, layout = read(root)
    assert (layout, rejections) == ("parquet", [])
    train = "data/train-00000-of-00001.parquet"
    assert triples(items) == [
        ("data/test-00000-of-00001.parquet#0", "cat", "test"),
        *[(f"{train}#{row}", "cat" if row in (1, 4) else "dog", "train") for row in range(5)],
    ]
    assert [item.read() for item in items[1:]] == rows
    again, _, _ = read(root)
    assert again == items


@pytest.mark.parametrize(
    ("column", "label", "expected"),
    [
        (pa.array([PNG, PNG]), pa.array(["a", "b"]), ["a", "b"]),
        (pa.array([PNG, PNG], pa.large_binary()), pa.array([7, 12], pa.uint8()), ["7", "12"]),
        (pa.array(images(PNG, PNG)), pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    ],
)
def test_other_types_of_image_and_label_columns_are_read(
    tmp_path: Path, column: pa.Array, label: pa.Array, expected: list[str]
) -> None:
    path = write(tmp_path / "pets.parquet", jpg=column, category=label)
    items, _, layout = read(path)
    assert (layout, [item.label for item in items]) == ("parquet", expected)


def test_only_rows_without_an_image_or_a_label_are_rejected(tmp_path: Path) -> None:
    write(
        tmp_path / "in" / "a.parquet", HUGGING_FACE,
        image=images(PNG, None, PNG, PNG), label=[0, 1, None, 5],
    )  # fmt: skip
    items, rejections, _ = read(tmp_path / "in")
    assert [item.name for item in items] == ["a.parquet#0"]
    assert reasons(rejections) == {
        "a.parquet#1": ("the row has no encoded image", True),
        "a.parquet#2": ("the row has no label", True),
        "a.parquet#3": ("the row has no label", True),
    }


def test_unreadable_file_is_an_error_and_leaves_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write(tmp_path / "good" / "a.parquet", image=images(PNG * 50, PNG * 50), label=[0, 1])
    cut = put(tmp_path / "cut", "a.parquet", data=good.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"damaged or incomplete.*a\.parquet"):
        read(cut)
    with pytest.raises(DataError, match=r"data\.max_extracted_mib"):
        read(good, max_bytes=1000)
    other = write(tmp_path / "other" / "a.parquet", text=["a"], coarse_label=[1])
    with pytest.raises(DataError, match=r"no column of encoded images.*columns text, coarse_label"):
        read(other, "parquet")
    # A Parquet file beside class folders is not read as a data set.
    beside = put(tmp_path / "beside", "a/1.jpg", "b/1.jpg")
    other.rename(beside / "a.parquet")
    assert read(beside)[2] == "folders"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'trainer\[parquet\]'"):
        read(good)
    assert not list((tmp_path / "cache").rglob("*.bin"))
