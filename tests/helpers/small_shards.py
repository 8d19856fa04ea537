"""Small shards, written as `trainer shard` writes them."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from helpers.small_data import SIZE, png, put, two_splits
from trainer.cli.bootstrap import import_tensorflow
from trainer.data.dataset import Dataset
from trainer.data.progress import SilentProgress
from trainer.data.shards.worker_pool import WorkerPool, start_processes
from trainer.data.shards.writer import make_shards
from trainer.spec.schema import DataSpec
from trainer.storage import open_store

SMALL = 1500
"""Shard size in bytes: a few images."""


@cache
def process_of(machine: int) -> ProcessPoolExecutor:
    """Return the worker process of a machine, shared by all tests because importing TensorFlow is slow."""
    return start_processes(1, import_tensorflow)


def loaded(names: set[str]) -> set[str]:
    """Return those of `names` that are in `sys.modules`: imported, or blocked with None."""
    return names & set(sys.modules)


def pack(
    root: Path, output: str, cache: Path, machine: int = 0, machines: int = 1, wait: float = 60.0
) -> None:
    spec = DataSpec(source=str(root), image_size=SIZE)
    with WorkerPool(
        1, cache, import_tensorflow, machine, machines, wait, executor=process_of(machine)
    ) as pool:
        make_shards(spec, open_store(output), SMALL, pool, SilentProgress())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def make_packed(root: Path) -> tuple[Path, Path]:
    """Write a folder of images and its shards; return both paths."""
    two_splits(root / "images", train=9, validation=4)
    put(root / "images" / "train" / "cats" / "odd.bmp", b"not an image")
    put(root / "images" / "train" / "dogs" / "ä ö.png", png(777, side=20))
    spec = DataSpec(source=str(root / "images"), max_rejected=0.5)
    with WorkerPool(1, root / "cache", import_tensorflow, executor=process_of(0)) as pool:
        make_shards(spec, open_store(str(root / "shards")), SMALL, pool, SilentProgress())
    return root / "images", root / "shards"


def pixels_by_name(dataset: Dataset) -> dict[tuple[str, str, str], bytes]:
    return {
        (name, item.name, dataset.class_names[label]): split.pixels.gather(np.asarray([row]))[0].tobytes()
        for name, split in dataset.splits.items()
        for row, (item, label) in enumerate(zip(split.items, split.labels, strict=True))
    }
