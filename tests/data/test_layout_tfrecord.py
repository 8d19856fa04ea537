"""TFRecord files: offsets of the images, and rejection of single invalid records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.layout_files import PNG, put, read_layout, reasons, triples
from helpers.tfrecords import example, field, framed

from trainer.errors import DataError


def test_tfrecord_items_have_the_byte_range_of_each_image(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "name",
    ["train-00000-of-00002", "pets-00001-of-00010", "pets.record-00000-of-00001", "a.record", "b.RECORDS"],
)
def test_files_with_other_names_are_recognized_by_their_first_record(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, data=framed(example(image_encoded=PNG, image_class_label=1)))
    items, _, layout = read_layout(tmp_path, "auto")
    assert (layout, triples(items)[0][:2]) == ("tfrecord", (f"{name}#0", "1"))
    flipped = bytearray((tmp_path / name).read_bytes())
    for position in (9, 40):
        flipped[position] ^= 1
        put(tmp_path / "other", f"a/{name}", "b/1.jpg", data=bytes(flipped))
        assert read_layout(tmp_path / "other" / "a", "auto")[2] == "folders"


def test_layout_tfrecord_reads_files_with_any_name(tmp_path: Path) -> None:
    put(tmp_path, "shard-7", data=framed(example(image_encoded=PNG, image_class_label=1)))
    put(tmp_path, "notes.txt", data=b"no record")
    for source in (tmp_path, tmp_path / "shard-7"):
        assert [item.name for item in read_layout(source, "tfrecord")[0]] == ["shard-7#0"]
    assert read_layout(tmp_path / "shard-7", "auto")[2] == "tfrecord"


def test_offset_of_an_image_is_right_if_its_first_bytes_occur_earlier(tmp_path: Path) -> None:
    image = PNG + b"x" * 300
    record = example(aaa=PNG + b"x" * 100, image_encoded=image, image_class_label=1, zzz=image)
    put(tmp_path, "a.tfrecord", data=framed(record))
    (item,), _, _ = read_layout(tmp_path, "auto")
    assert (item.offset, item.read()) == (12 + record.index(image), image)


def test_feature_names_that_are_not_utf8_are_ignored(tmp_path: Path) -> None:
    entry = field(1, field(1, b"caf\xe9") + field(2, field(1, field(1, b"x"))))
    put(
        tmp_path, "a.tfrecord", data=framed(example(image_encoded=PNG, image_class_label=1) + field(1, entry))
    )
    items, rejections, _ = read_layout(tmp_path, "auto")
    assert (len(items), rejections) == (1, [])


def test_tfrecord_is_read_without_tensorflow(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(framed(example(image_encoded=PNG, image_class_label=1)))
    code = (
        "import sys; from pathlib import Path; from trainer.data.readers import read_layout\n"
        "from trainer.data.readers.import_files import Buckets\n"
        f"read = read_layout(Path({str(path)!r}), 'auto', Buckets(lambda uris: {{}}))\n"
        "print(len(read.items), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"


FEATURES = b"""{"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
"featuresDict": {"features": {"KIND": {"pythonClassName":
"tensorflow_datasets.core.features.class_label_feature.ClassLabel",
"classLabel": {"numClasses": "2"}}, "photo": {"pythonClassName":
"tensorflow_datasets.core.features.image_feature.Image"},
"id": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"}}}}"""


@pytest.mark.parametrize("described", [FEATURES, None, b"[1]", b'{"featuresDict": {"features": [3]}}'])
def test_tensorflow_datasets_records_are_read_with_class_names(
    tmp_path: Path, described: bytes | None
) -> None:
    image, label = ("photo", "KIND") if described == FEATURES else ("image", "label")
    record = example(**{image: PNG, label: 1})
    put(
        tmp_path, "1.0.0/pets-train.tfrecord-00000-of-00001", data=framed(record) + framed(example(image=PNG))
    )
    put(tmp_path, f"1.0.0/{label}.labels.txt", data=b"cat\ndog\n")
    if described is not None:
        put(tmp_path, "1.0.0/features.json", data=described)
    items, rejections, _ = read_layout(tmp_path, "auto")
    name = "1.0.0/pets-train.tfrecord-00000-of-00001"
    assert (triples(items), items[0].read()) == ([(f"{name}#0", "dog", "train")], PNG)
    assert [rejection.name for rejection in rejections] == [f"{name}#1"]


def test_tfrecord_written_by_tensorflow_is_read(tmp_path: Path) -> None:
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
def test_tfrecord_label_numbers_get_names_from_the_labels_file(tmp_path: Path, labels: str) -> None:
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
def test_tfrecord_record_with_several_labels_is_rejected(tmp_path: Path, feature: bytes) -> None:
    entry = field(1, field(1, b"image/class/label") + field(2, feature))
    put(tmp_path, "a.tfrecord", data=framed(example(image_encoded=PNG) + field(1, entry)))
    items, rejections, _ = read_layout(tmp_path, "auto")
    assert items == []
    reason = "several values of image/class/label; an image has one class"
    assert reasons(rejections) == {"a.tfrecord#0": (reason, True)}


def test_only_invalid_tfrecord_records_are_rejected(tmp_path: Path) -> None:
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
def test_invalid_tfrecord_file_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    put(tmp_path, "a.tfrecord", data=data)
    with pytest.raises(DataError, match=message):
        read_layout(tmp_path, "auto")
