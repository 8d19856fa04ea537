"""CIFAR binary files: records and class names."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.layout_files import cifar_record, put, read_layout, reasons, triples

from trainer.errors import DataError


@pytest.mark.parametrize("wrapper", ["", "cifar-10-batches-bin/"])
def test_cifar_10_is_read_with_class_names(tmp_path: Path, wrapper: str) -> None:
    put(tmp_path, f"{wrapper}batches.meta.txt", data=b"airplane\nbird\n\n")
    put(tmp_path, f"{wrapper}data_batch_1.bin", data=cifar_record([1], 10) + cifar_record([0], 11))
    put(tmp_path, f"{wrapper}data_batch_2.bin", data=cifar_record([9], 12))
    put(tmp_path, f"{wrapper}test_batch.bin", data=b"".join(cifar_record([0], fill) for fill in range(12)))
    items, rejections, layout = read_layout(tmp_path, "auto")
    assert layout == "cifar"
    assert triples(items)[:3] == [
        (f"{wrapper}data_batch_1.bin#0", "bird", "train"),
        (f"{wrapper}data_batch_1.bin#1", "airplane", "train"),
        (f"{wrapper}test_batch.bin#0", "airplane", "test"),
    ]
    assert [item.name.split("#")[1] for item in items[2:]] == [str(number) for number in range(12)]
    assert items[1].read() == bytes([11]) * 3072
    assert {item.encoding for item in items} == {"cifar"}
    assert list(reasons(rejections)) == [f"{wrapper}data_batch_2.bin#0"]


def test_cifar_100_uses_the_fine_label(tmp_path: Path) -> None:
    put(tmp_path, "fine_label_names.txt", data=b"apple\nbear\n")
    put(tmp_path, "train.bin", data=cifar_record([7, 1], 10))
    put(tmp_path, "test.bin", data=cifar_record([7, 0], 11))
    items, _, _ = read_layout(tmp_path, "auto")
    assert triples(items) == [("test.bin#0", "apple", "test"), ("train.bin#0", "bear", "train")]
    assert items[1].read() == bytes([10]) * 3072


def test_truncated_cifar_file_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "data_batch_1.bin", data=cifar_record([1], 10)[:-1])
    with pytest.raises(DataError, match="truncated"):
        read_layout(tmp_path, "auto")
