"""WebDataset tar files: images read in place, with the labels of their samples."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from helpers.layout_files import PNG, put, read_layout, reasons, triples

from trainer.data.fetch import fetch_source
from trainer.data.progress import SilentProgress
from trainer.errors import DataError


def tar(path: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_images_are_read_from_tars_with_the_labels_of_their_samples(tmp_path: Path) -> None:
    long = "deep/" * 30 + "000003"
    tar(
        tmp_path / "train-000.tar",
        ("000001.jpg", PNG + b"1"), ("000001.cls", b"1\n"),
        ("000002.cls", b"0"), ("000002.jpg", PNG + b"2"),
        (f"{long}.jpg", PNG + b"3"), (f"{long}.cls", b"1"),
    )  # fmt: skip
    described = json.dumps({"label": 0, "width": 3}).encode()
    tar(tmp_path / "train-001.tar", ("a.png", PNG), ("a.json", described), ("a.txt", b"a caption"))
    tar(tmp_path / "val" / "0.tar", ("b.img", PNG), ("b.cls", b"dog"))
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    items, rejections, layout = read_layout(tmp_path, "auto")
    assert (layout, rejections) == ("webdataset", [])
    assert triples(items) == [
        ("train-000.tar#000001.jpg", "cat", "train"),
        ("train-000.tar#000002.jpg", "dog", "train"),
        (f"train-000.tar#{long}.jpg", "cat", "train"),
        ("train-001.tar#a.png", "dog", "train"),
        ("val/0.tar#b.img", "dog", "validation"),
    ]
    assert [item.read() for item in items] == [PNG + b"1", PNG + b"2", PNG + b"3", PNG, PNG]


def test_single_tar_with_labels_is_not_unpacked(tmp_path: Path) -> None:
    one = tar(tmp_path / "a.tar", ("1.jpg", PNG), ("1.cls", b"4"))
    assert fetch_source(str(one), None, tmp_path / "cache", 1 << 20, SilentProgress()) == one
    items, _, layout = read_layout(one, "auto")
    assert (layout, triples(items)) == ("webdataset", [("a.tar#1.jpg", "4", None)])


@pytest.mark.parametrize(
    "members",
    [
        [("cats/1.jpg", PNG), ("dogs/1.jpg", PNG)],
        [("cats/1.jpg", PNG), ("cats/1.json", b'{"boxes": [], "size": 3}'), ("dogs/1.jpg", PNG)],
        [("cats/1.jpg", PNG), ("cats/1.txt", b"cat")],
    ],
)
def test_archive_of_class_folders_is_unpacked(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    one = tar(tmp_path / "a.tar", *members)
    folder = fetch_source(str(one), None, tmp_path / "cache", 1 << 20, SilentProgress())
    assert (folder / "cats" / "1.jpg").read_bytes() == PNG


def test_only_invalid_samples_are_rejected(tmp_path: Path) -> None:
    tar(
        tmp_path / "a.tar",
        ("1.jpg", PNG), ("1.cls", b"0"),
        ("2.jpg", PNG), ("2.json", b"{"),
        ("3.jpg", PNG), ("3.seg.png", PNG), ("3.cls", b"0"),
        ("4.cls", b"0"), ("4.mp4", b"\0\0\0\x18ftypisom"),
        ("5.jpg", PNG), ("5.cls", b"7"),
    )  # fmt: skip
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    items, rejections, _ = read_layout(tmp_path, "webdataset")
    assert len(items) == 1
    assert reasons(rejections) == {
        "a.tar#2": ("no label: the sample has no .cls or .json member with a label", True),
        "a.tar#3": ("the sample has 2 images instead of one", True),
        "a.tar#4": ("the sample has no images instead of one", True),
        "a.tar#5": ("unknown label: 7 is not in the file with class names", True),
    }


def test_compressed_or_damaged_tar_is_an_error(tmp_path: Path) -> None:
    members = [("1.jpg", PNG), ("1.cls", b"4"), ("2.jpg", PNG * 300), ("2.cls", b"4")]
    packed = tar(tmp_path / "packed" / "a.tar.gz", *members, mode="w:gz")
    with pytest.raises(DataError, match="Decompress it with gunzip"):
        read_layout(packed.parent, "auto")
    with pytest.raises(DataError, match="Decompress it with gunzip"):
        fetch_source(str(packed), None, tmp_path / "cache", 1 << 20, SilentProgress())
    cut = tar(tmp_path / "cut" / "a.tar", *members)
    cut.write_bytes(cut.read_bytes()[:4000])
    with pytest.raises(DataError, match="damaged or incomplete"):
        read_layout(cut, "webdataset")
    with pytest.raises(DataError, match=r"data\.layout is webdataset, but the source does not contain tar"):
        read_layout(put(tmp_path / "other", "a/1.jpg"), "webdataset")
