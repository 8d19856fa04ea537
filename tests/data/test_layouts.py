"""Behaviour common to all layouts: names safe for display, and errors of missing layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.layout_files import PNG, cifar_record, put, read_layout, triples
from helpers.tfrecords import example, framed

from trainer.errors import DataError


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    put(tmp_path, "a\x1b[2J/1\t\x9b.png", "b/\u202egnp.exe.png")
    items, _, _ = read_layout(tmp_path, "auto")
    assert triples(items) == [
        ("a\\x1b[2J/1\\t\\x9b.png", "a\\x1b[2J", None), ("b/\\u202egnp.exe.png", "b", None)
    ]  # fmt: skip


def test_unreadable_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder cannot be read"):
        read_layout(tmp_path / "missing", "auto")


def test_control_characters_in_labels_are_escaped(tmp_path: Path) -> None:
    record = example(image_encoded=PNG, image_class_label=1, image_class_text=b"ca\x1b[2Jt")
    put(tmp_path, "a.tfrecord", data=framed(record))
    put(tmp_path, "b/data_batch_1.bin", data=cifar_record([1], 7))
    (tmp_path / "b" / "batches.meta.txt").write_text("dog\nca\x9bt\n")
    assert [item.label for item in read_layout(tmp_path, "tfrecord")[0]] == ["ca\\x1b[2Jt"]
    assert [item.label for item in read_layout(tmp_path / "b", "cifar")[0]] == ["ca\\x9bt"]


@pytest.mark.parametrize("layout", ["tfrecord", "cifar", "import"])
def test_missing_requested_layout_is_an_error(tmp_path: Path, layout: str) -> None:
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    with pytest.raises(DataError, match=f"data.layout is {layout}"):
        read_layout(tmp_path, layout)
    assert read_layout(tmp_path, "folders")[2] == "folders"


def test_single_file_of_an_unsupported_type_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "photo.jpg")
    with pytest.raises(DataError, match="single file"):
        read_layout(tmp_path / "photo.jpg", "auto")
