"""The folders at the top of a source, and what they hold.

In: a folder. Out: a `Branch`: the split that its name says, the folders in it and whether images lie
directly in it. A folder that only repeats the name (`seg_train/seg_train`, `pets/pets`) or is called `images`
is passed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainer.data.labels import normalized
from trainer.data.layouts.found import (
    bare_name,
    files_below,
    is_picture,
    list_folder,
    split_named,
    wrapped_folders,
)

_MOST_NESTED = 4
_UNLABELLED = frozenset(
    {"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "submission"}
)
_PARTS = frozenset({"part", "parts", "fold", "batch", "chunk", "shard", "subset", "split", "archive", ""})
_SIDES = frozenset(
    {"mask", "masks", "annotation", "annotations", "label", "labels", "segmentation", "segmentations"}
    | {"groundtruth", "gt", "depth", "edges", "bboxes", "thumbnails", ""}
)


@dataclass(frozen=True)
class Branch:
    """One folder at the top."""

    folder: Path
    split: str | None
    inside: Path
    """The folder itself, or the one below it that holds what it is there for."""
    folders: tuple[Path, ...]
    """In `inside`."""
    files: tuple[Path, ...]
    """In `inside`."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @cached_property
    def labels(self) -> frozenset[str]:
        """What its folders would be as classes."""
        return frozenset(normalized(folder.name) for folder in self.folders)

    @cached_property
    def has_own_pictures(self) -> bool:
        """Whether an image lies directly in `inside`."""
        return any(map(is_picture, self.files))

    @cached_property
    def has_pictures(self) -> bool:
        """Whether an image lies anywhere in it."""
        return self.has_own_pictures or any(map(is_picture, files_below(self.folder)))

    @property
    def core(self) -> Path:
        """`inside`, or the innermost of the folders that wrap what it holds."""
        return wrapped_folders(self.inside)[-1] if len(self.folders) == 1 else self.inside

    @cached_property
    def is_of_splits(self) -> bool:
        """Whether it is a whole data set: its folders are splits that hold folders."""
        if not self.folders:
            return False
        named = [folder for folder in list_folder(self.core)[0] if split_named(folder.name)]
        splits = {split_named(folder.name) for folder in named if list_folder(_inside(folder))[0]}
        return "train" in splits or len(splits) > 1

    @property
    def is_flat(self) -> bool:
        """Whether it holds images and no folder."""
        return not self.folders and self.has_own_pictures

    @property
    def is_unlabelled(self) -> bool:
        """Whether the name says that nobody knows what is on its images."""
        return bare_name(self.name) in _UNLABELLED

    @property
    def is_part(self) -> bool:
        """Whether the name is a number among others: `images_part_1`, `fold0`."""
        name = self.name
        return any(map(str.isdigit, name)) and any(map(str.isalpha, name)) and _last_word(name) in _PARTS

    @property
    def is_side(self) -> bool:
        """Whether the name is that of one side of a set of pairs: images, masks."""
        return bare_name(self.name) in _SIDES and not any(map(str.isdigit, self.name))


def read_branch(folder: Path) -> Branch:
    """Return what `folder` holds. Raises DataError if it can't be read."""
    inside = _inside(folder)
    folders, files = list_folder(inside)
    return Branch(folder, split_named(folder.name), inside, tuple(folders), tuple(files))


def agree(branches: Sequence[Branch], least: int = 1) -> bool:
    """Return whether the folders in each of `branches` are largely those of the largest one.

    least: how many names each has to share with it.
    """
    largest = max((branch.labels for branch in branches), key=len)
    shared = [(len(branch.labels & largest), len(branch.labels)) for branch in branches]
    return all(common >= least and 2 * common >= count for common, count in shared)


def _inside(folder: Path) -> Path:
    split = split_named(folder.name)
    for _ in range(_MOST_NESTED):
        folders, files = list_folder(folder)
        if len(folders) != 1 or any(map(is_picture, files)):
            break
        name = folders[0].name
        is_same = split_named(name) == split if split else name.lower() == folder.name.lower()
        if not is_same and bare_name(name):
            break
        folder = folders[0]
    return folder


def _last_word(name: str) -> str:
    """Return the last word of `name` that says something; "" for one such as `images_1`."""
    words = map(bare_name, re.split(r"[\W_]+", name))
    return next((word for word in reversed(list(words)) if word), "")
