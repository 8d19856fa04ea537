"""Loading of datasets: images, labels, splits, pixels and digest."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small_data import SIZE, digests, items_of, load, png, put, two_splits
from helpers.small_disk import small_disk
from helpers.tfrecords import example, framed
from PIL import Image

from trainer.data.dataset import format_contents
from trainer.data.digests import content_digest
from trainer.data.ingest import ImageDecoder
from trainer.data.items import Item, Rejection
from trainer.data.load import load_dataset
from trainer.data.progress import SilentProgress, Task
from trainer.errors import DataError, TemporaryError
from trainer.spec.schema import DataSpec


class Recorder(SilentProgress):
    """Progress that records the total and the increments of its tasks."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def start(self, label: str, total: int | None, unit: str) -> Task:
        self.total = total
        return _RecordedTask(self.done)


class _RecordedTask:
    def __init__(self, done: list[int]) -> None:
        self.done = done

    def advance(self, amount: int) -> None:
        self.done.append(amount)

    def finish(self) -> None:
        self.done.append(-1)


def test_images_of_two_splits_are_loaded_with_labels_and_pixels(tmp_path: Path) -> None:
    root, progress = two_splits(tmp_path / "data"), Recorder()
    put(root / "train" / "cats" / "large.bmp", _bmp(640))
    put(root / "readme.md", b"# pets")
    calls: list[tuple[Rejection, ...]] = []
    spec = DataSpec(source=str(root), image_size=SIZE)
    dataset = load_dataset(spec, tmp_path / "cache", progress, calls.append)
    assert dataset.class_names == ("cats", "dogs")
    assert list(dataset.splits) == ["train", "validation"]
    assert dataset.held_out is dataset.splits["validation"]
    assert dataset.train.labels.tolist() == [0] * 7 + [1] * 6
    assert dataset.train.labels.dtype == np.int32
    assert [item.name for item in dataset.train.items][6:8] == ["train/cats/large.bmp", "train/dogs/0.png"]
    assert dataset.train.pixels.shape == (13, SIZE, SIZE, 3)
    for split in dataset.splits.values():
        for index, item in enumerate(split.items):
            if item.path.suffix == ".png":
                expected = np.asarray(Image.open(item.path))
                np.testing.assert_array_equal(split.pixels.gather(np.array([index]))[0], expected)
    assert dataset.train.pixels.gather(np.array([6])).std() > 0
    assert calls == [dataset.rejected] == [(Rejection("readme.md", "not an image type: .md", damaged=False),)]
    assert (progress.total, sum(progress.done)) == (19, 18)
    assert format_contents(dataset) == "Found 13 train and 6 validation images in 2 classes: cats, dogs"
    summary = json.loads(json.dumps(dataset.summary))
    assert summary["splits"]["train"].pop("digest").startswith("sha256:")
    assert summary["splits"]["train"] == {"images": 13, "classes": {"cats": 7, "dogs": 6}}
    assert summary["rejected"] == {"count": 1, "damaged": 0, "reasons": {"not an image type": 1}}
    assert (summary["layout"], summary["source"]) == ("folders", str(root))
    assert summary["digest"] == "sha256:" + dataset.digest


def _bmp(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(buffer, "BMP")
    return buffer.getvalue()


def test_pixels_and_digest_are_the_same_from_memory_and_from_disk(tmp_path: Path) -> None:
    one = load(two_splits(tmp_path / "one"), tmp_path / "cache")
    other = load(two_splits(tmp_path / "two"), tmp_path / "cache", cache_mib=0)
    everything = np.arange(12)
    np.testing.assert_array_equal(one.train.pixels.gather(everything), other.train.pixels.gather(everything))
    assert one.digest == other.digest
    assert list((tmp_path / "cache" / "pixels").iterdir()) == []


def test_folder_is_split_by_content_and_equal_images_stay_together(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for seed in range(30):
        put(root / f"{seed % 2}" / f"{seed}.png", png(seed))
        put(root / f"{seed % 2}" / f"copy-{seed}.png", png(seed))
    dataset = load(root, tmp_path / "cache", validation_fraction=0.3)
    assert list(dataset.splits) == ["train", "validation"]
    assert dataset.summary["duplicates_across_splits"]["count"] == 0
    assert dataset.warnings == ()
    sides = {item.name: name for name, split in dataset.splits.items() for item in split.items}
    assert all(sides[f"{seed % 2}/{seed}.png"] == sides[f"{seed % 2}/copy-{seed}.png"] for seed in range(30))


@pytest.mark.parametrize("size", [32, SIZE])
def test_cifar_records_have_the_right_colours(tmp_path: Path, size: int) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "cifar-10-batches-bin"
    halves = rng.integers(0, 256, (4, 3, 2, 1), np.uint8)
    planes = np.repeat(np.repeat(halves, 16, axis=2), 32, axis=3)
    records = [bytes([index % 2]) + image.tobytes() for index, image in enumerate(planes)]
    put(root / "data_batch_1.bin", b"".join(records[:2]))
    put(root / "test_batch.bin", b"".join(records[2:]))
    dataset = load(tmp_path, tmp_path / "cache", image_size=size)
    assert (dataset.class_names, dataset.held_out.name) == (("0", "1"), "test")
    pixels = dataset.held_out.pixels.gather(np.array([0, 1]))
    for half, row in enumerate((1, size - 2)):
        np.testing.assert_array_equal(pixels[:, row, size // 2], halves[2:, :, half, 0])


def test_images_in_tfrecord_files_are_decoded_in_place(tmp_path: Path) -> None:
    for split, seeds in (("train", range(4)), ("val", range(4, 6))):
        records = [example(image_encoded=png(seed), image_class_label=seed % 2) for seed in seeds]
        put(tmp_path / "data" / f"{split}.tfrecord", b"".join(map(framed, records)))
    dataset = load(tmp_path / "data", tmp_path / "cache")
    assert (dataset.summary["layout"], dataset.train.labels.tolist()) == ("tfrecord", [0, 1, 0, 1])
    expected = np.asarray(Image.open(io.BytesIO(png(5))))
    np.testing.assert_array_equal(dataset.held_out.pixels.gather(np.array([1]))[0], expected)


def test_too_small_disk_for_the_pixels_is_a_temporary_error(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    with (
        small_disk(tmp_path / "small", "size=256k") as folder,
        pytest.raises(TemporaryError, match="too little space"),
    ):
        load(root, folder, cache_mib=0, image_size=512)


def test_image_that_disappears_after_it_was_decoded_is_a_data_error(tmp_path: Path) -> None:
    put(tmp_path / "cat.png", png(1))
    (tmp_path / "bad.png").write_bytes(b"")
    items = [Item(name, "cat", None, tmp_path / name) for name in ("cat.png", "bad.png")]
    decoder = ImageDecoder(items, DataSpec(source=str(tmp_path), image_size=SIZE), SilentProgress())
    written: list[int] = []
    decoder.decode_first(np.arange(2), lambda number, pixels: written.append(number))
    assert [decoder.results[number].reason for number in range(2)] == [None, "empty file"]
    decoder.decode_again(np.array([0]), lambda number, pixels: written.append(number))
    (tmp_path / "cat.png").unlink()
    with pytest.raises(DataError, match=r"the source has changed\. .*Received: cat\.png, cannot be read"):
        decoder.decode_again(np.array([0]), lambda number, pixels: written.append(number))
    assert written == [0, 0]


def test_digest_depends_on_everything_but_the_order() -> None:
    items, contents = items_of(("cats", "train", ""), ("dogs", "test", "")), digests(1, 2)
    digest = content_digest(items, contents)
    assert content_digest(items[::-1], contents[::-1]) == digest
    changed = [replace(items[0], **{key: "x"}) for key in ("name", "label", "split")]
    others = {content_digest([one, items[1]], contents) for one in changed} | {
        content_digest(items, digests(1, 3))
    }
    assert len(others | {digest}) == 5


def test_summary_line_fits_the_width_and_sorts_numbered_classes_by_number(tmp_path: Path) -> None:
    for label in range(12):
        for seed, split in enumerate(("train", "val", "test")):
            put(tmp_path / "data" / split / str(label) / "1.png", png(3 * label + seed))
    dataset = load(tmp_path / "data", tmp_path / "cache")
    assert dataset.class_names == tuple(str(label) for label in range(12))
    start = "Found 12 train, 12 validation and 12 test images in 12 classes:"
    assert format_contents(dataset) == start + "\n  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"
    assert format_contents(dataset, 100) == start + " 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"
    assert format_contents(dataset, 25) == start + "\n  0, 1, 2, 3, 4, 5, 6, 7,\n  8, 9, 10, 11"
    many = replace(dataset, class_names=tuple(f"species {number}" for number in range(200)))
    lines = format_contents(many).splitlines()
    assert len(lines) == 7
    assert lines[1].startswith("  species 0, species 1, ")
    assert lines[-1] == "  and 169 more"
    assert max(map(len, lines)) <= 80
