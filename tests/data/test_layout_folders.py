"""Class and split folders: files that count as images, and warnings about other files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers.layout_files import PNG, put, read_all, read_layout, reasons, triples

from trainer.errors import DataError


def test_folder_of_classes_has_no_split(tmp_path: Path) -> None:
    put(tmp_path, "dogs/b.JPG", "cats/a.png", "cats/more/deep/c.webp")
    items, rejections, layout = read_layout(tmp_path, "auto")
    assert layout == "folders"
    assert rejections == []
    assert triples(items) == [
        ("cats/a.png", "cats", None),
        ("cats/more/deep/c.webp", "cats", None),
        ("dogs/b.JPG", "dogs", None),
    ]
    assert items[0].read() == PNG


@pytest.mark.parametrize("held_out", ["validation", "val", "valid", "Validation"])
@pytest.mark.parametrize("wrapper", ["", "cats_and_dogs_filtered/", "outer/inner/"])
def test_split_folders_are_recognized_in_any_spelling_and_wrapper(
    tmp_path: Path, held_out: str, wrapper: str
) -> None:
    put(tmp_path, *(f"{wrapper}{split}/{name}/1.jpg" for split in ("train", held_out) for name in ("a", "b")))
    put(tmp_path, f"{wrapper}vectorize.py", f"{wrapper}test/a/1.gif", f"{wrapper}other/x.png", data=b"x")
    items, rejections, _ = read_layout(tmp_path, "auto")
    assert [(item.split, item.label) for item in items if item.split != "test"] == sorted(
        [("train", "a"), ("train", "b"), ("validation", "a"), ("validation", "b")],
        key=lambda pair: (held_out if pair[0] == "validation" else "train", pair[1]),
    )
    assert [item.name for item in items if item.split == "test"] == [f"{wrapper}test/a/1.gif"]
    assert reasons(rejections) == {
        f"{wrapper}vectorize.py": ("not an image type: .py", False),
        f"{wrapper}other/x.png": ("outside the folders of the splits", False),
    }


def test_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "car/1.jpg", "bus/1.jpg")
    items, _, _ = read_layout(tmp_path, "auto")
    assert triples(items)[2] == ("train/1.jpg", "train", None)


def test_splits_without_class_folders_are_an_error(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "test/1.jpg")
    with pytest.raises(DataError, match="no class folders"):
        read_layout(tmp_path, "auto")


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    put(tmp_path, *(f"{label}/{label}{number}/{number}.png" for label in "ab" for number in range(9)))
    for label in "ab":
        for number in range(9):
            for other in range(9):
                os.symlink(f"../{label}{other}", tmp_path / label / f"{label}{number}" / f"to-{other}")
    items, _, _ = read_layout(tmp_path, "auto")
    assert len(items) == 18


def test_folders_nested_deeper_than_the_recursion_limit_are_read(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    folder = f"{tmp_path}/a"
    for _ in range(1200):
        folder += "/d"
        os.mkdir(folder)
    try:
        assert len(read_layout(tmp_path, "auto")[0]) == 2
    finally:
        # The cleanup of pytest is recursive and would exceed the stack.
        subprocess.run(["rm", "-r", tmp_path / "a"], check=True)


def test_hidden_files_and_files_of_other_types_are_not_images(tmp_path: Path) -> None:
    put(
        tmp_path,
        "a/.hidden.jpg",
        "a/Thumbs.db",
        "a/desktop.ini",
        "__MACOSX/a/._1.jpg",
        ".git/x.png",
        data=b"x",
    )
    put(tmp_path, "a/notes.txt", "a/mystery", "top.jpg", data=b"hello")
    put(tmp_path, "a/no-suffix", "b/1.jpe")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    os.symlink(tmp_path / "b" / "1.jpe", tmp_path / "a" / "link.jpg")
    os.symlink(tmp_path / "nowhere", tmp_path / "a" / "broken.jpg")
    os.symlink("itself.png", tmp_path / "a" / "itself.png")
    os.symlink(tmp_path / "a", tmp_path / "a" / "loop")
    os.symlink("..", tmp_path / "a" / "up")
    os.symlink("../b", tmp_path / "a" / "other-class")
    items, rejections, _ = read_layout(tmp_path, "auto")
    assert [item.name for item in items] == ["a/link.jpg", "a/no-suffix", "b/1.jpe"]
    assert reasons(rejections) == {
        "a/broken.jpg": ("broken symbolic link", True),
        "a/itself.png": ("broken symbolic link", True),
        "a/mystery": ("not an image type: no extension", False),
        "a/notes.txt": ("not an image type: .txt", False),
        "a/pipe.jpg": ("not a regular file", False),
        "top.jpg": ("outside the class folders", False),
    }


def test_empty_class_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "validation/a/1.jpg")
    put(tmp_path, "validation/b/readme.txt", data=b"no picture")
    with pytest.raises(DataError, match=r"Received: validation/b \(other files in it: 1\)"):
        read_layout(tmp_path, "auto")


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))).write_bytes(PNG)
    items, _, _ = read_layout(put(tmp_path, "b/1.jpg"), "auto")
    assert items[0].name == "a/caf\\udce9.jpg"
    assert items[0].name.encode("utf-8")
    assert items[0].read() == PNG


def test_links_to_outside_of_the_source_are_followed_with_a_warning(tmp_path: Path) -> None:
    put(tmp_path / "disk", "cats/1.png", "cats/2.png", "one.png", "labels.csv")
    put(tmp_path / "photos", "dogs/1.png", "dogs/2.png")
    (tmp_path / "source").symlink_to("photos")
    (tmp_path / "photos" / "dogs" / "3.png").symlink_to("2.png")
    source = tmp_path / "source"
    (source / "mice").symlink_to("dogs")  # a link within the source
    assert read_all(source, "folders").warnings == []
    (source / "mice").unlink()
    (source / "cats").symlink_to(tmp_path / "disk" / "cats")
    read = read_all(source, "auto")
    assert [item.name for item in read.items if item.label == "cats"] == ["cats/1.png", "cats/2.png"]
    assert read.warnings == [
        f"following a symbolic link to outside of the source: cats -> {tmp_path}/disk/cats (2 files read)"
    ]
    (source / "dogs" / "4.png").symlink_to("../../disk/one.png")
    assert len((read := read_all(source, "auto")).items) == 6
    assert read.warnings == [
        "following 2 symbolic links to outside of the source, such as "
        f"cats -> {tmp_path}/disk/cats (3 files read)"
    ]


def test_table_that_is_a_link_to_outside_of_the_source_causes_a_warning(tmp_path: Path) -> None:
    put(tmp_path / "source", "1.png", "2.png")
    (tmp_path / "labels.csv").write_text("path,label\n1.png,cat\n2.png,dog\n")
    (tmp_path / "source" / "labels.csv").symlink_to("../labels.csv")
    read = read_all(tmp_path / "source", "auto")
    assert read.layout == "import"
    assert any(f"labels.csv -> {tmp_path}/labels.csv (1 file read)" in warning for warning in read.warnings)
