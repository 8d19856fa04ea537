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


def test_adjacent_source_images_are_not_adjacent_in_a_shard(
    packed: tuple[Path, Path], tmp_path: Path
) -> None:
    names = [item.name for item in load(packed[1], tmp_path).splits["train"].items]
    assert names != sorted(names)
    assert len({name.split("/")[1] for name in names[:6]}) == 2


def test_worker_imports_no_packages_for_unused_features_of_keras() -> None:
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
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    assert not [name for name in files_of(tmp_path / "one") if name.startswith("packing-")]


def test_missing_machine_is_an_error_and_finished_shards_are_kept(tmp_path: Path) -> None:
    root, output = two_splits(tmp_path / "images", train=9), str(tmp_path / "shards")
    # Machine 0 scans the only piece and packs every second shard.
    with pytest.raises(TemporaryError, match="Start the missing machines"):
        pack(root, output, tmp_path / "cache", 0, 2, wait=0.5)
    files = files_of(tmp_path / "shards")
    written = [name for name in files if name.endswith(".tfrecord")]
    assert written
    assert not (tmp_path / "shards" / "shards.json").exists()
    times = {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in written}
    with pytest.raises(DataError, match="shards are incomplete"):
        load(tmp_path / "shards", tmp_path, layout="shards")
    pack(root, output, tmp_path / "cache")
    assert times == {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in written}
    assert len(load(tmp_path / "shards", tmp_path).train.items) == 18


def test_shard_changed_before_the_end_is_packed_again(tmp_path: Path) -> None:
    root, output = two_splits(tmp_path / "images", train=9), str(tmp_path / "shards")
    with pytest.raises(TemporaryError):
        pack(root, output, tmp_path / "cache", 0, 2, wait=0.5)
    next((tmp_path / "shards").glob("*.tfrecord")).write_bytes(b"short")
    with pytest.raises(TemporaryError, match="pack it again"):
        pack(root, output, tmp_path / "cache")
    pack(root, output, tmp_path / "cache")
    assert len(pixels_by_name(load(tmp_path / "shards", tmp_path))) == 24


def test_output_with_shards_of_other_images_is_an_error(packed: tuple[Path, Path], tmp_path: Path) -> None:
    before = files_of(packed[1])
    with pytest.raises(UsageError, match="shards of other images"):
        pack(two_splits(tmp_path / "images"), str(packed[1]), tmp_path)
    assert files_of(packed[1]) == before


@pytest.mark.parametrize("kind", ["scan", "pack"])
@pytest.mark.parametrize(
    "garbage", ["{", pytest.param("[]", marks=pytest.mark.engine), pytest.param("", marks=pytest.mark.engine)]
)
def test_damaged_part_file_is_repeated_by_the_next_start(tmp_path: Path, kind: str, garbage: str) -> None:
    root, output = two_splits(tmp_path / "images", train=9), str(tmp_path / "shards")
    with pytest.raises(TemporaryError, match="Start the missing machines"):
        pack(root, output, tmp_path / "cache", 0, 2, wait=0.5)
    (tmp_path / "shards" / f"packing-{kind}-000000.json").write_text(garbage)
    with pytest.raises(TemporaryError, match="repeat this unit of work"):
        pack(root, output, tmp_path / "cache")
    pack(root, output, tmp_path / "cache")
    assert (tmp_path / "shards" / "shards.json").exists()


def test_replaced_image_of_the_same_name_is_an_error(tmp_path: Path) -> None:
    root, output = two_splits(tmp_path / "images", train=9), str(tmp_path / "shards")
    pack(root, output, tmp_path / "cache")
    pack(root, output, tmp_path / "cache")  # a second call has nothing to do
    next(root.rglob("*.png")).write_bytes(png(778, side=21))
    with pytest.raises(UsageError, match="other images"):
        pack(root, output, tmp_path / "cache")
