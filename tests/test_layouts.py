"""Every layout is read for what it is, and what doesn't belong is named."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainer.data import layouts
from trainer.data.header import declared_size, image_kind, reason_not_to_decode
from trainer.data.items import Item, Rejection
from trainer.data.layouts.import_files import Buckets
from trainer.exits import DataError

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 3, 2)


def read_layout(root: Path, layout: str) -> tuple[list[Item], list[Rejection], str]:
    """Read as the data room does, with no bucket to be reached."""
    return layouts.read_layout(root, layout, Buckets(lambda uris: {}))


def put(root: Path, *names: str, data: bytes = PNG) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def triples(items: list[Item]) -> list[tuple[str, str, str | None]]:
    return [(item.name, item.label, item.split) for item in items]


def reasons(rejections: list[Rejection]) -> dict[str, tuple[str, bool]]:
    return {rejection.name: (rejection.reason, rejection.damaged) for rejection in rejections}


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
def test_split_folders_are_found_in_any_spelling_and_wrapper(
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


def test_folders_that_link_to_each_other_are_each_read_once(tmp_path: Path) -> None:
    put(tmp_path, *(f"{label}/{number}/{number}.png" for label in "ab" for number in range(9)))
    for label in "ab":
        for number in range(9):
            for other in range(9):
                os.symlink(f"../{other}", tmp_path / label / str(number) / f"to-{other}")
    items, _, _ = read_layout(tmp_path, "auto")
    assert len(items) == 18


def test_folders_deeper_than_pythons_stack_are_read(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    folder = f"{tmp_path}/a"
    for _ in range(1200):
        folder += "/d"
        os.mkdir(folder)
    try:
        assert len(read_layout(tmp_path, "auto")[0]) == 2
    finally:
        # pytest's own cleaning is recursive.
        subprocess.run(["rm", "-r", tmp_path / "a"], check=True)


def test_only_images_and_nothing_hidden_count(tmp_path: Path) -> None:
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
        "a/broken.jpg": ("a link that leads nowhere", True),
        "a/itself.png": ("a link that leads nowhere", True),
        "a/mystery": ("not an image type: no extension", False),
        "a/notes.txt": ("not an image type: .txt", False),
        "a/pipe.jpg": ("not a plain file", False),
        "top.jpg": ("outside the class folders", False),
    }


def test_empty_class_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "validation/a/1.jpg", "validation/b/readme.txt")
    with pytest.raises(DataError, match=r"Received: validation/b \(other files in it: 1\)"):
        read_layout(tmp_path, "auto")


def test_names_that_are_not_utf8_can_be_printed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))).write_bytes(PNG)
    items, _, _ = read_layout(put(tmp_path, "b/1.jpg"), "auto")
    assert items[0].name == "a/caf\\udce9.jpg"
    assert items[0].name.encode("utf-8")
    assert items[0].read() == PNG


def test_names_that_a_terminal_would_obey_are_spelled_out(tmp_path: Path) -> None:
    put(tmp_path, "a\x1b[2J/1\t\x9b.png", "b/\u202egnp.exe.png")
    items, _, _ = read_layout(tmp_path, "auto")
    assert triples(items) == [
        ("a\\x1b[2J/1\\t\\x9b.png", "a\\x1b[2J", None), ("b/\\u202egnp.exe.png", "b", None)
    ]  # fmt: skip


def test_unreadable_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder can't be read"):
        read_layout(tmp_path / "missing", "auto")


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


def test_import_from_a_server_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "import.csv").write_text("https://example.com/1.png,cat\n")
    with pytest.raises(DataError, match=r"by gs:// URI.*import\.csv:1: "):
        read_layout(tmp_path, "auto")


@pytest.mark.parametrize("data", [b"1.png,caf\xe9\n", b"\xff\xfe1\0."], ids=["latin-1", "half a UTF-16"])
def test_import_that_is_not_text_is_an_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "import.csv").write_bytes(data)
    with pytest.raises(DataError, match="UTF-8"):
        read_layout(tmp_path / "import.csv", "auto")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("header", ["", "path{0}label\n", "ml_use{0}uri{0}Label\n"])
def test_import_csv_is_read_as_spreadsheets_save_it(
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


def test_table_beside_class_folders_is_no_import_file(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "scores.csv").write_text("id,score\n1,0.5\n2,0.6\n")
    (tmp_path / "notes.csv").write_bytes("a,b\n".encode("utf-16"))
    assert read_layout(tmp_path, "auto")[2] == "folders"
    with pytest.raises(DataError, match=r"has not .*\.csv"):
        read_layout(tmp_path, "import")


def crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 3720 defines it: not the library that is tested."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def example(**features: bytes | int) -> bytes:
    """A serialized tf.train.Example; '_' stands for '/' in names."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = field(1, field(1, value))
        else:
            feature = field(3, field(1, bytes([value])))
        entries += field(1, field(1, name.replace("_", "/").encode()) + field(2, feature))
    return field(1, entries)


def test_tfrecord_gives_the_place_of_every_image(tmp_path: Path) -> None:
    image = PNG + b"x" * 300
    records = [
        example(image_encoded=image, image_class_label=1, image_class_text=b"cat"),
        example(image_height=3, image_class_label=0, image_class_text=b"dog", image_encoded=PNG),
    ]
    (tmp_path / "train.tfrecord-00000-of-00002").write_bytes(b"".join(map(framed, records)))
    put(
        tmp_path,
        "train.tfrecord-00001-of-00002",
        "val.tfrecords",
        "pets-test.tfrecord",
        data=framed(records[0]),
    )
    put(tmp_path, "rest.tfrecord", data=framed(records[1]))
    items, rejections, layout = read_layout(tmp_path, "auto")
    assert (layout, rejections) == ("tfrecord", [])
    assert triples(items) == [
        ("pets-test.tfrecord#0", "cat", "test"),
        ("rest.tfrecord#0", "dog", None),
        ("train.tfrecord-00000-of-00002#0", "cat", "train"),
        ("train.tfrecord-00000-of-00002#1", "dog", "train"),
        ("train.tfrecord-00001-of-00002#0", "cat", "train"),
        ("val.tfrecords#0", "cat", "validation"),
    ]
    assert [items[2].read(), items[3].read()] == [image, PNG]


def test_labels_that_a_terminal_would_obey_are_spelled_out(tmp_path: Path) -> None:
    record = example(image_encoded=PNG, image_class_label=1, image_class_text=b"ca\x1b[2Jt")
    put(tmp_path, "a.tfrecord", data=framed(record))
    put(tmp_path, "b/data_batch_1.bin", data=cifar_record([1], 7))
    (tmp_path / "b" / "batches.meta.txt").write_text("dog\nca\x9bt\n")
    assert [item.label for item in read_layout(tmp_path, "tfrecord")[0]] == ["ca\\x1b[2Jt"]
    assert [item.label for item in read_layout(tmp_path / "b", "cifar")[0]] == ["ca\\x9bt"]


def test_tfrecord_that_tensorflow_wrote_is_read(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")

    def feature(value: Any) -> Any:
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for label in (7, 1000, -1):
            values = {"image/encoded": PNG + b"y" * label, "image/class/label": label, "image/format": b"png"}
            features = tf.train.Features(feature={name: feature(value) for name, value in values.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())
    items, _, _ = read_layout(tmp_path / "a.tfrecord", "auto")
    assert [item.label for item in items] == ["7", "1000", "-1"]
    assert [item.read() for item in items] == [PNG + b"y" * 7, PNG + b"y" * 1000, PNG]


@pytest.mark.parametrize("labels", ["dog\ncat\n", "1:cat\n0:dog\n"])
def test_tfrecord_numbers_are_named_by_labels_file(tmp_path: Path, labels: str) -> None:
    records = [example(image_encoded=PNG, image_class_label=label) for label in (0, 1, 2)]
    put(tmp_path, "inside/train/a.tfrecord", data=b"".join(map(framed, records)))
    put(tmp_path, "inside/train/labels.txt", data=labels.encode())
    items, rejections, _ = read_layout(tmp_path, "auto")
    assert [(item.label, item.split) for item in items] == [("dog", "train"), ("cat", "train")]
    assert reasons(rejections) == {
        "inside/train/a.tfrecord#2": ("unknown label: 2 is not in labels.txt", True)
    }


@pytest.mark.parametrize(
    "feature",
    [
        field(3, field(1, bytes([1, 0]))),
        field(3, bytes([1 << 3, 1, 1 << 3, 0])),
        field(3, field(1, bytes([0]))) + field(3, field(1, bytes([0]))),
    ],
    ids=["packed", "unpacked", "in two lists"],
)
def test_tfrecord_record_with_several_labels_is_left_out(tmp_path: Path, feature: bytes) -> None:
    entry = field(1, field(1, b"image/class/label") + field(2, feature))
    put(tmp_path, "a.tfrecord", data=framed(example(image_encoded=PNG) + field(1, entry)))
    items, rejections, _ = read_layout(tmp_path, "auto")
    assert items == []
    reason = "several values of image/class/label; one image has one class"
    assert reasons(rejections) == {"a.tfrecord#0": (reason, True)}


def test_tfrecord_record_that_is_wrong_is_left_out_alone(tmp_path: Path) -> None:
    good = framed(example(image_encoded=PNG, image_class_label=1))
    flipped = bytearray(good)
    flipped[30] ^= 1
    broken = [bytes(flipped), framed(b"\xff\xff"), framed(b""), framed(example(image_encoded=PNG))]
    broken.append(framed(example(image_encoded=3, image_class_label=1)))
    put(tmp_path, "a.tfrecord", data=b"".join([*broken, good]))
    items, rejections, _ = read_layout(tmp_path, "auto")
    assert [item.name for item in items] == ["a.tfrecord#5"]
    assert [rejection.name for rejection in rejections] == [f"a.tfrecord#{index}" for index in range(5)]
    assert all(rejection.damaged for rejection in rejections)
    assert "checksum" in rejections[0].reason


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b\x08\0", "GZIP"),
        (framed(b"x" * 50)[:-3], "truncated"),
        (framed(b"x" * 50)[:7], "truncated"),
        (framed(b"x") + b"\1" + framed(b"x")[1:9] + b"zzzzzzzz", "damaged or not a TFRecord"),
        (b"this is a text file, not records", "damaged or not"),
    ],
)
def test_tfrecord_file_that_is_wrong_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    put(tmp_path, "a.tfrecord", data=data)
    with pytest.raises(DataError, match=message):
        read_layout(tmp_path, "auto")


def cifar_record(labels: list[int], fill: int) -> bytes:
    return bytes(labels) + bytes([fill]) * 3072


@pytest.mark.parametrize("wrapper", ["", "cifar-10-batches-bin/"])
def test_cifar_10_is_read_with_its_names(tmp_path: Path, wrapper: str) -> None:
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


def test_cifar_100_takes_the_fine_label(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("layout", ["tfrecord", "cifar", "import"])
def test_layout_that_was_asked_for_must_be_there(tmp_path: Path, layout: str) -> None:
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    with pytest.raises(DataError, match=f"data.layout is {layout}"):
        read_layout(tmp_path, layout)
    assert read_layout(tmp_path, "folders")[2] == "folders"


def test_single_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "photo.jpg")
    with pytest.raises(DataError, match="single file"):
        read_layout(tmp_path / "photo.jpg", "auto")


def test_all_frames_of_a_gif_count_as_they_are_all_unpacked() -> None:
    import io

    from PIL import Image

    frames = [Image.effect_noise((60 + 10 * index, 50), 80) for index in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], disposal=2)
    data = buffer.getvalue()
    pixels = (60 + 70 + 80) * 50
    assert reason_not_to_decode(data, pixels) is None
    assert f"frames have {pixels} pixels" in str(reason_not_to_decode(data, pixels - 1))
    for length in range(len(data)):  # cut off anywhere, it is no error of ours
        reason_not_to_decode(data[:length], pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_declared_size_is_the_one_that_pillow_reads(kind: str) -> None:
    import io

    from PIL import Image

    for options in ({}, {"lossless": True}, {"progressive": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}):
        buffer = io.BytesIO()
        Image.new("RGB", (301, 77), "red").save(buffer, kind, **options)
        assert image_kind(buffer.getvalue()) == kind.lower()
        assert declared_size(buffer.getvalue()) == (301, 77)
        assert reason_not_to_decode(buffer.getvalue(), 301 * 77) is None
        assert "301 x 77" in str(reason_not_to_decode(buffer.getvalue(), 301 * 77 - 1))
        for length in range(60):
            assert declared_size(buffer.getvalue()[:length]) in (None, (301, 77))
            assert reason_not_to_decode(buffer.getvalue()[:length], 301 * 77 - 1)
