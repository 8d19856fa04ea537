"""`data.held_out`: the split that is held out, and test images that are not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.small_data import SIZE, load, png, put, two_splits
from helpers.small_shards import process_of

from trainer.cli.bootstrap import import_tensorflow
from trainer.data.progress import SilentProgress
from trainer.data.shards.worker_pool import WorkerPool
from trainer.data.shards.writer import make_shards
from trainer.errors import UsageError
from trainer.spec.schema import DataSpec
from trainer.storage import open_store


def with_test(root: Path, has_validation: bool) -> Path:
    two_splits(root, train=10, validation=3)
    if not has_validation:
        (root / "validation").rename(root / "test")
        return root
    for number, label in enumerate(("cats", "dogs")):
        put(root / "test" / label / "0.png", png(1000 + number))
    return root


def counts(root: Path, cache: Path, **settings: Any) -> dict[str, int]:
    return {name: len(split.items) for name, split in load(root, cache, **settings).splits.items()}


def test_held_out_validation_excludes_test_images_before_decoding(tmp_path: Path) -> None:
    root = with_test(tmp_path / "data", has_validation=True)
    assert counts(root, tmp_path) == {"train": 20, "validation": 6, "test": 2}
    put(root / "test" / "cats" / "0.png", b"damaged")
    assert counts(root, tmp_path, held_out="validation") == {"train": 20, "validation": 6}
    assert load(root, tmp_path, held_out="validation").summary["rejected"]["count"] == 0


def test_part_of_the_training_images_is_held_out_without_a_validation_split(tmp_path: Path) -> None:
    root = with_test(tmp_path / "data", has_validation=False)
    assert counts(root, tmp_path) == {"train": 20, "test": 6}
    dataset = load(root, tmp_path, held_out="validation", validation_fraction=0.3)
    assert {name: len(split.items) for name, split in dataset.splits.items()} == {
        "train": 14,
        "validation": 6,
    }
    assert all(item.name.startswith("train/") for item in dataset.held_out.items)
    assert dataset.summary["split_by"] == "stratified"


@pytest.mark.parametrize("has_validation", [True, False])
def test_held_out_train_uses_only_training_images(has_validation: bool, tmp_path: Path) -> None:
    root = with_test(tmp_path / "data", has_validation)
    assert counts(root, tmp_path, held_out="train") == {"train": 16, "validation": 4}


def test_held_out_train_excludes_the_usual_held_out_images_of_an_unsplit_source(tmp_path: Path) -> None:
    for label, start in (("cats", 0), ("dogs", 100)):
        for number in range(25):
            put(tmp_path / "data" / label / f"{number}.png", png(start + number))
    usual = load(tmp_path / "data", tmp_path)
    inner = load(tmp_path / "data", tmp_path, held_out="train")
    assert [len(split.items) for split in inner.splits.values()] == [32, 8]
    used = {item.name for split in inner.splits.values() for item in split.items}
    assert used == {item.name for item in usual.train.items}
    assert usual.digest != inner.digest
    assert load(tmp_path / "data", tmp_path, held_out="validation").digest == usual.digest


def test_shards_are_read_and_packed_without_test_images(tmp_path: Path) -> None:
    shards = {}
    for has_validation, held_out in ((True, "auto"), (False, "validation")):
        root = with_test(tmp_path / f"data-{held_out}", has_validation)
        spec = DataSpec(source=str(root), image_size=SIZE, held_out=held_out)
        shards[held_out] = tmp_path / held_out
        with WorkerPool(1, tmp_path / "cache", import_tensorflow, executor=process_of(0)) as pool:
            make_shards(spec, open_store(str(shards[held_out])), 4000, pool, SilentProgress())
    assert counts(shards["auto"], tmp_path, held_out="validation") == {"train": 20, "validation": 6}
    assert counts(shards["validation"], tmp_path, held_out="validation") == {"train": 16, "validation": 4}
    with pytest.raises(UsageError, match=r"--set data\.held_out=train"):
        counts(shards["auto"], tmp_path, held_out="train")
