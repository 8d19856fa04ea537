"""A data set is what its files say; what can't be trained on is an error that names it."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_disk import small_disk
from test_layouts import example, framed

from trainer.data.checks import (
    find_duplicates,
    require_classes,
    require_few_rejected,
    require_full_splits,
    require_images,
    warnings_of,
)
from trainer.data.dataset import Dataset, content_digest, format_found, load_dataset
from trainer.data.items import Item, Rejection
from trainer.data.progress import SilentProgress, Task
from trainer.data.split import assign_splits
from trainer.exits import DataError, TemporaryError
from trainer.spec.schema import DataSpec

SIZE = 8


def png(seed: int, side: int = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def two_splits(root: Path, train: int = 6, validation: int = 3) -> Path:
    """Classes cats and dogs, every image different."""
    seed = 0
    for split, count in (("train", train), ("validation", validation)):
        for label in ("dogs", "cats"):
            for index in range(count):
                put(root / split / label / f"{index}.png", png(seed))
                seed += 1
    return root


class Recorder(SilentProgress):
    """Remembers what was said of the work."""

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


def load(root: Path, cache: Path, rejected: list[Rejection] | None = None, **settings: Any) -> Dataset:
    spec = DataSpec.model_validate({"source": str(root), "image_size": SIZE} | settings)
    heard: list[Rejection] = [] if rejected is None else rejected
    return load_dataset(spec, cache, SilentProgress(), heard.extend)


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
                np.testing.assert_array_equal(split.pixels.take(np.array([index]))[0], expected)
    assert dataset.train.pixels.take(np.array([6])).std() > 0
    assert calls == [dataset.rejected] == [(Rejection("readme.md", "not an image type: .md", damaged=False),)]
    assert (progress.total, sum(progress.done)) == (19, 18)
    assert format_found(dataset) == "Found 13 train and 6 validation images in 2 classes: cats, dogs"
    summary = json.loads(json.dumps(dataset.summary))
    assert summary["splits"]["train"] == {"images": 13, "classes": {"cats": 7, "dogs": 6}}
    assert summary["rejected"] == {"count": 1, "damaged": 0, "reasons": {"not an image type": 1}}
    assert (summary["layout"], summary["source"]) == ("folders", str(root))
    assert summary["digest"] == "sha256:" + dataset.digest


def _bmp(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(buffer, "BMP")
    return buffer.getvalue()


def test_damaged_files_are_left_out_with_their_reasons_or_stop_the_run(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    folder, whole = root / "train" / "cats", png(99, 64)
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 200)]
    moving = io.BytesIO()
    frames[0].save(moving, "WEBP", save_all=True, append_images=frames[1:])
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    put(folder / "a-bomb.png", whole[:16] + struct.pack(">II", 40000, 40000) + whole[24:])
    put(folder / "b-empty.png", b"")
    put(folder / "c-text.jpg", b"hello, I am text")
    put(folder / "d-short.png", whole[:2000])
    put(folder / "e-flipped.png", bytes(flipped))
    put(folder / "f-moving.webp", moving.getvalue())
    rejected = load(root, tmp_path / "cache", max_rejected=0.5).rejected
    assert [(Path(one.name).name, one.reason) for one in rejected] == [
        ("a-bomb.png", "too large: declares 40000 x 40000 pixels, over the limit of 100000000 pixels"),
        ("b-empty.png", "empty file"),
        ("c-text.jpg", "not an image: starts with b'hello, I'"),
        ("d-short.png", "truncated: the PNG ends early"),
        ("e-flipped.png", "damaged: the PNG can't be decoded"),
        ("f-moving.webp", "animated WebP: only still ones are read; save its first frame as an image"),
    ]
    with pytest.raises(DataError, match=r"6 of 24 images can't be used: train/cats/a-bomb.png \(too large"):
        load(root, tmp_path / "cache", max_rejected=0.2)


def test_what_was_left_out_is_reported_before_the_run_stops(tmp_path: Path) -> None:
    root, reported = two_splits(tmp_path / "data"), list[Rejection]()
    put(root / "train" / "cats" / "x.png", b"")
    with pytest.raises(DataError, match="1 of 19 images"):
        load(root, tmp_path / "cache", reported)
    assert reported == [Rejection("train/cats/x.png", "empty file")]


def test_pixels_and_digest_are_the_same_from_disk_and_from_elsewhere(tmp_path: Path) -> None:
    one = load(two_splits(tmp_path / "one"), tmp_path / "cache")
    other = load(two_splits(tmp_path / "two"), tmp_path / "cache", cache_mib=0)
    everything = np.arange(12)
    np.testing.assert_array_equal(one.train.pixels.take(everything), other.train.pixels.take(everything))
    assert one.digest == other.digest
    assert list((tmp_path / "cache" / "pixels").iterdir()) == []


def test_one_folder_is_split_by_content_and_equal_images_stay_together(tmp_path: Path) -> None:
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
def test_cifar_records_have_the_colours_they_say(tmp_path: Path, size: int) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "cifar-10-batches-bin"
    halves = rng.integers(0, 256, (4, 3, 2, 1), np.uint8)
    planes = np.repeat(np.repeat(halves, 16, axis=2), 32, axis=3)
    records = [bytes([index % 2]) + image.tobytes() for index, image in enumerate(planes)]
    put(root / "data_batch_1.bin", b"".join(records[:2]))
    put(root / "test_batch.bin", b"".join(records[2:]))
    dataset = load(tmp_path, tmp_path / "cache", image_size=size)
    assert (dataset.class_names, dataset.held_out.name) == (("0", "1"), "test")
    taken = dataset.held_out.pixels.take(np.array([0, 1]))
    for half, row in enumerate((1, size - 2)):
        np.testing.assert_array_equal(taken[:, row, size // 2], halves[2:, :, half, 0])


def test_images_in_tfrecord_files_are_decoded_where_they_lie(tmp_path: Path) -> None:
    for split, seeds in (("train", range(4)), ("val", range(4, 6))):
        records = [example(image_encoded=png(seed), image_class_label=seed % 2) for seed in seeds]
        put(tmp_path / "data" / f"{split}.tfrecord", b"".join(map(framed, records)))
    dataset = load(tmp_path / "data", tmp_path / "cache")
    assert (dataset.summary["layout"], dataset.train.labels.tolist()) == ("tfrecord", [0, 1, 0, 1])
    expected = np.asarray(Image.open(io.BytesIO(png(5))))
    np.testing.assert_array_equal(dataset.held_out.pixels.take(np.array([1]))[0], expected)


def test_same_image_with_another_label_in_validation_stops_the_run(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    put(root / "validation" / "dogs" / "same.png", (root / "train" / "cats" / "1.png").read_bytes())
    with pytest.raises(DataError, match=r"1 image: train/cats/1\.png and validation/dogs/same\.png"):
        load(root, tmp_path / "cache")


def test_same_image_in_both_splits_is_a_warning_that_counts(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    put(root / "validation" / "cats" / "same.png", (root / "train" / "cats" / "1.png").read_bytes())
    dataset = load(root, tmp_path / "cache")
    assert dataset.warnings == ("1 image appears in train and validation; dataset.json lists them",)
    assert dataset.summary["duplicates_across_splits"] == {
        "count": 1,
        "images": [
            [
                {"split": "train", "label": "cats", "name": "train/cats/1.png"},
                {"split": "validation", "label": "cats", "name": "validation/cats/same.png"},
            ]
        ],
    }


def test_class_of_which_nothing_can_be_decoded_is_named(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    put(root / "train" / "birds" / "1.png", b"chirp")
    with pytest.raises(DataError, match=r"No image of a class could be decoded.*birds"):
        load(root, tmp_path / "cache", max_rejected=0.5)


def test_source_without_images_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "data" / "notes.txt", b"x")
    reported = list[Rejection]()
    with pytest.raises(DataError, match=r"no images: .* with 1 other file, such as notes\.txt"):
        load(tmp_path / "data", tmp_path / "cache", reported)
    assert len(reported) == 1


def test_disk_without_room_for_the_pixels_is_a_temporary_error(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "data")
    with (
        small_disk(tmp_path / "small", "size=256k") as folder,
        pytest.raises(TemporaryError, match="no room"),
    ):
        load(root, folder, cache_mib=0, image_size=512)


def items_of(*triples: tuple[str, str | None, str]) -> list[Item]:
    """Items named a, b, c, ... of (label, split, content)."""
    return [
        Item(chr(ord("a") + index), label, split, Path("x"))
        for index, (label, split, _) in enumerate(triples)
    ]


def digests(*contents: object) -> list[str]:
    return [hashlib.sha256(str(content).encode()).hexdigest() for content in contents]


def many(count: int, labels: Sequence[str] = ("a", "b")) -> tuple[list[Item], list[str]]:
    items = [Item(str(index), labels[index % len(labels)], None, Path("x")) for index in range(count)]
    return items, digests(*range(count))


def held_out(items: Sequence[Item]) -> set[str]:
    return {item.name for item in items if item.split == "validation"}


def test_split_takes_about_the_fraction_of_every_class() -> None:
    items, contents = many(4000)
    split = assign_splits(items, contents, 0.25)
    for label in ("a", "b"):
        share = np.mean([item.split == "validation" for item in split if item.label == label])
        assert abs(share - 0.25) < 0.03
    assert [replace(item, split=None) for item in split] == items


def test_split_keeps_images_where_they_are_when_others_are_added_or_reordered() -> None:
    items, contents = many(600)
    before = held_out(assign_splits(items[:200], contents[:200], 0.2))
    after = held_out(assign_splits(items[::-1], contents[::-1], 0.2))
    assert before == after & {item.name for item in items[:200]}


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_split_leaves_no_side_empty_where_a_class_has_two_images(fraction: float) -> None:
    items, contents = many(4)
    split = assign_splits(items, contents, fraction)
    sides = {(item.label, item.split) for item in split}
    assert len(sides) == 4


def test_split_of_a_tiny_class_looks_only_at_images_without_a_split() -> None:
    contents = sorted(digests(*range(5)))
    items = items_of(("a", "test", ""), ("a", None, ""), ("a", None, ""), ("a", None, ""), ("a", "test", ""))
    for fraction in (0.001, 0.999):
        split = assign_splits(items, contents, fraction)
        assert {item.split for item in split[1:4]} == {"train", "validation"}


def test_split_keeps_equal_images_together_even_in_tiny_classes() -> None:
    items = items_of(("a", None, ""), ("a", None, ""), ("b", None, ""), ("b", None, ""))
    for fraction in (0.001, 0.5, 0.999):
        split = assign_splits(items, digests(1, 2, 1, 3), fraction)
        assert split[0].split == split[2].split


def test_split_that_the_source_names_is_kept_and_train_alone_is_divided() -> None:
    items, contents = many(100)
    named = [replace(item, split="test" if index < 10 else "train") for index, item in enumerate(items)]
    assert assign_splits(named, contents, 0.2) == named
    only_train = [replace(item, split="train") for item in items]
    assert held_out(assign_splits(only_train, contents, 0.2)) == held_out(assign_splits(items, contents, 0.2))
    open_ones = [replace(item, split="test") if index < 10 else item for index, item in enumerate(items)]
    assert {item.split for item in assign_splits(open_ones, contents, 0.2)} == {"train", "validation", "test"}


@pytest.mark.parametrize("lacking", ["train", "validation", "test"])
def test_class_that_a_split_lacks_is_named(lacking: str) -> None:
    items = [
        Item(f"{split}/{label}", label, split, Path("x"))
        for split in ("train", "validation", "test")
        for label in ("cats", "dogs")
        if (split, label) != (lacking, "dogs")
    ]
    with pytest.raises(DataError, match=f"none in {lacking}, .*dogs"):
        require_full_splits(items)


def test_source_needs_images_to_train_on_and_to_hold_out() -> None:
    with pytest.raises(DataError, match="no images in train"):
        require_full_splits(items_of(("a", "test", ""), ("b", "test", "")))
    with pytest.raises(DataError, match="no images in validation"):
        require_full_splits(items_of(("a", "train", ""), ("b", "train", "")))


def test_single_class_is_an_error_and_two_are_not() -> None:
    with pytest.raises(DataError, match=r"only one class.*Received: cats"):
        require_classes(["cats"], ["cats"])
    require_classes(["cats", "dogs"], ["cats", "dogs"])


def test_share_of_damaged_files_counts_only_those_that_were_meant_as_images() -> None:
    bad = [Rejection(str(index), "empty file") for index in range(2)]
    other = [Rejection(f"{index}.txt", "not an image type", damaged=False) for index in range(50)]
    require_few_rejected(200, bad + other, 0.01)
    with pytest.raises(DataError, match="2 of 199 images"):
        require_few_rejected(199, bad + other, 0.01)
    with pytest.raises(DataError):
        require_few_rejected(1000, bad, 0.0)
    require_images(items_of(("a", None, "")), other, "here")


def test_duplicates_are_told_from_contradictions() -> None:
    items = items_of(
        ("cats", "train", ""),
        ("cats", "test", ""),
        ("dogs", "train", ""),
        ("cats", "train", ""),
        ("cats", "train", ""),
        ("cats", "validation", ""),
        ("dogs", "test", ""),
    )
    found = find_duplicates(items, ["1", "1", "2", "2", "3", "4", "4"])
    assert [[item.name for item in group] for group in found.across_splits] == [["a", "b"], ["f", "g"]]
    assert [[item.name for item in group] for group in found.contradicting] == [["c", "d"]]
    assert warnings_of(found) == (
        "1 image appears in train and test; dataset.json lists them",
        "1 image appears in validation and test; dataset.json lists them",
        "1 image with several labels within a split, such as c and d; dataset.json lists them",
    )
    assert warnings_of(find_duplicates(items, list("1234567"))) == ()
    # One image that is there thousands of times is compared in no time.
    many = items_of(*[("cats", "train", ""), ("dogs", "test", "")] * 10_000)
    with pytest.raises(DataError, match=r"Received: 1 image: "):
        find_duplicates(many, ["same"] * 20_000)


def test_digest_depends_on_everything_but_the_order() -> None:
    items, contents = items_of(("cats", "train", ""), ("dogs", "test", "")), digests(1, 2)
    digest = content_digest(items, contents)
    assert content_digest(items[::-1], contents[::-1]) == digest
    changed = [replace(items[0], **{key: "x"}) for key in ("name", "label", "split")]
    others = {content_digest([one, items[1]], contents) for one in changed} | {
        content_digest(items, digests(1, 3))
    }
    assert len(others | {digest}) == 5


def test_found_line_fits_and_numbered_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for label in range(12):
        for seed, split in enumerate(("train", "val", "test")):
            put(tmp_path / "data" / split / str(label) / "1.png", png(3 * label + seed))
    dataset = load(tmp_path / "data", tmp_path / "cache")
    assert dataset.class_names == tuple(str(label) for label in range(12))
    start = "Found 12 train, 12 validation and 12 test images in 12 classes: "
    assert format_found(dataset) == start + "0, 1 and 10 more"
    assert format_found(dataset, 100) == start + "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"
    assert format_found(dataset, 65) == start.removesuffix(": ")
