"""Random samples per class from an archive with train/CLASS/ and test/CLASS/ folders."""

from __future__ import annotations

import random
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

_HELD_OUT_TO_CHOOSE_BY = 200
"""Training images per class that are held out while settings are being chosen."""


def draw_images(
    archive: Path, folder: Path, count: int, classes: int | None, seed: int, to_choose: bool
) -> None:
    """Write `count` training images per class into folder/train, and the test images into folder/test.

    classes: number of classes, the first ones by name; None for all. to_choose: hold out other training
    images instead of the test images, so that settings are chosen without using the test images.
    """
    with zipfile.ZipFile(archive) as images:
        train, test = _named(images, "train"), _named(images, "test")
        for name in sorted(train)[:classes]:
            names = sorted(train[name])
            random.Random(f"{seed} {name}").shuffle(names)
            _write(images, names[:count], folder / "train" / name)
            others = names[count : count + _HELD_OUT_TO_CHOOSE_BY]
            _write(images, others if to_choose else test[name], folder / "test" / name)


def _named(images: zipfile.ZipFile, split: str) -> dict[str, list[str]]:
    """Return the images of a split by class."""
    found = defaultdict(list)
    for name in images.namelist():
        path = PurePosixPath(name)
        if path.suffix and path.parts[-3:-2] == (split,):
            found[path.parts[-2]].append(name)
    return found


def _write(images: zipfile.ZipFile, names: Iterable[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / PurePosixPath(name).name).write_bytes(images.read(name))
