"""Shard packing: identical bytes for any number of machines and after interruptions."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from helpers.small_data import load, png, two_splits
from helpers.small_shards import files_of, loaded, make_packed, pack, pixels_by_name, process_of

from trainer.errors import DataError, TemporaryError, UsageError


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder of images and the folder of their shards."""
    return make_packed(tmp_path_factory.mktemp("packed"))


def test_neighbours_of_the_source_are_not_neighbours_in_a_shard(
    packed: tuple[Path, Path], tmp_path: Path
) -> None:
    names = [item.name for item in load(packed[1], tmp_path).splits["train"].items]
    assert names != sorted(names)
    assert len({name.split("/")[1] for name in names[:6]}) == 2


def test_a_process_that_imports_tensorflow_leaves_out_what_only_unused_parts_of_keras_need() -> None:
    names = {"tensorflow", "keras", "sklearn", "matplotlib", "IPython"}
    assert process_of(0).submit(loaded, names).result() == {"tensorflow", "keras"}


def test_two_machines_pack_the_same_bytes_as_one(packed: tuple[Path, Path], tmp_path: Path) -> None:
    root = two_splits(tmp_path / "images", train=9, validation=4)
    pack(root, str(tmp_path / "one"), tmp_path / "cache")
    both = [
        threading.Thread(
            target=pack, args=(root, str(tmp_path / "two"), tmp_path / f"cache{index}", index, 2)
        )
        for index in range(2)
    ]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    assert not [name for name in files_of(tmp_path / "one") if name.startswith("packing-")]


def test_a_machine_that_stays_away_is_missed_and_what_was_done_is_kept(tmp_path: Path) -> None:
    root, output = two_splits(tmp_path / "images", train=9), str(tmp_path / "shards")
    # Machine 0 scans the only piece and packs every second shard.
    with pytest.raises(TemporaryError, match="start those that are missing"):
        pack(root, output, tmp_path / "cache", 0, 2, wait=0.5)
    there = files_of(tmp_path / "shards")
    written = [name for name in there if name.endswith(".tfrecord")]
    assert written
    assert not (tmp_path / "shards" / "shards.json").exists()
    times = {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in written}
    with pytest.raises(DataError, match="not all packed yet"):
        load(tmp_path / "shards", tmp_path, layout="shards")
    pack(root, output, tmp_path / "cache")
    assert times == {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in written}
    assert len(load(tmp_path / "shards", tmp_path).train.items) == 18


def test_a_shard_that_was_lost_before_the_end_is_packed_anew(tmp_path: Path) -> None:
    root, output = two_splits(tmp_path / "images", train=9), str(tmp_path / "shards")
    with pytest.raises(TemporaryError):
        pack(root, output, tmp_path / "cache", 0, 2, wait=0.5)
    next((tmp_path / "shards").glob("*.tfrecord")).write_bytes(b"short")
    with pytest.raises(TemporaryError, match="packed anew"):
        pack(root, output, tmp_path / "cache")
    pack(root, output, tmp_path / "cache")
    assert len(pixels_by_name(load(tmp_path / "shards", tmp_path))) == 24


def test_other_images_are_not_packed_into_the_same_place(packed: tuple[Path, Path], tmp_path: Path) -> None:
    before = files_of(packed[1])
    with pytest.raises(UsageError, match="Shards of other images"):
        pack(two_splits(tmp_path / "images"), str(packed[1]), tmp_path)
    assert files_of(packed[1]) == before


@pytest.mark.parametrize("kind", ["scan", "pack"])
@pytest.mark.parametrize(
    "garbage", ["{", pytest.param("[]", marks=pytest.mark.engine), pytest.param("", marks=pytest.mark.engine)]
)
def test_notes_that_are_garbage_cost_one_more_start(tmp_path: Path, kind: str, garbage: str) -> None:
    root, output = two_splits(tmp_path / "images", train=9), str(tmp_path / "shards")
    with pytest.raises(TemporaryError, match="start those that are missing"):
        pack(root, output, tmp_path / "cache", 0, 2, wait=0.5)
    (tmp_path / "shards" / f"packing-{kind}-000000.json").write_text(garbage)
    with pytest.raises(TemporaryError, match="done anew"):
        pack(root, output, tmp_path / "cache")
    pack(root, output, tmp_path / "cache")
    assert (tmp_path / "shards" / "shards.json").exists()


def test_a_picture_that_was_replaced_under_its_name_is_not_taken_for_packed(tmp_path: Path) -> None:
    root, output = two_splits(tmp_path / "images", train=9), str(tmp_path / "shards")
    pack(root, output, tmp_path / "cache")
    pack(root, output, tmp_path / "cache")  # a second call has nothing to do
    next(root.rglob("*.png")).write_bytes(png(778, side=21))
    with pytest.raises(UsageError, match="other images"):
        pack(root, output, tmp_path / "cache")
