"""Top-level folders of a source.

`read_branch` returns a `Branch`: the split that the folder's name denotes, the folders inside it and the
files directly inside it. A single nested folder that repeats the name (`seg_train/seg_train`, `pets/pets`) or
is called `images` is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainer.data.labels import normalized
from trainer.data.readers.read_result import (
    bare_name,
    files_below,
    is_picture,
    list_folder,
    split_named,
    wrapped_folders,
)

_MAX_NESTED = 4
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
    """One top-level folder."""

    folder: Path
    split: str | None
    inside: Path
    """The folder itself, or the nested folder that contains its data."""
    folders: tuple[Path, ...]
    """Folders directly in `inside`."""
    files: tuple[Path, ...]
    """Files directly in `inside`."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @cached_property
    def labels(self) -> frozenset[str]:
        """Class labels that its folders would have, in NFC."""
        return frozenset(normalized(folder.name) for folder in self.folders)

    @cached_property
    def has_own_pictures(self) -> bool:
        """Whether `inside` directly contains an image."""
        return any(map(is_picture, self.files))

    @cached_property
    def has_pictures(self) -> bool:
        """Whether the folder contains an image at any depth."""
        return self.has_own_pictures or any(map(is_picture, files_below(self.folder)))

    @property
    def core(self) -> Path:
        """`inside`, or the innermost of its wrapper folders if it contains a single folder."""
        return wrapped_folders(self.inside)[-1] if len(self.folders) == 1 else self.inside

    @cached_property
    def is_of_splits(self) -> bool:
        """Whether the folder is a complete dataset: its folders are splits that contain folders."""
        if not self.folders:
            return False
        named = [folder for folder in list_folder(self.core)[0] if split_named(folder.name)]
        splits = {split_named(folder.name) for folder in named if list_folder(_inside(folder))[0]}
        return "train" in splits or len(splits) > 1

    @property
    def is_flat(self) -> bool:
        """Whether the folder contains images and no folders."""
        return not self.folders and self.has_own_pictures

    @property
    def is_unlabelled(self) -> bool:
        """Whether the name denotes unlabeled images, such as `predict`."""
        return bare_name(self.name) in _UNLABELLED

    @property
    def is_part(self) -> bool:
        """Whether the name denotes a numbered part: `images_part_1`, `fold0`."""
        name = self.name
        return any(map(str.isdigit, name)) and any(map(str.isalpha, name)) and _last_word(name) in _PARTS

    @property
    def is_side(self) -> bool:
        """Whether the name denotes one side of a paired dataset: images, masks."""
        return bare_name(self.name) in _SIDES and not any(map(str.isdigit, self.name))


def read_branch(folder: Path) -> Branch:
    """Return the branch of `folder`. Raises DataError if the folder cannot be read."""
    inside = _inside(folder)
    folders, files = list_folder(inside)
    return Branch(folder, split_named(folder.name), inside, tuple(folders), tuple(files))


def have_same_folders(branches: Sequence[Branch], least: int = 1) -> bool:
    """Return whether at least half of each branch's folder names occur in the largest branch.

    Each branch must share at least `least` names with it.
    """
    largest = max((branch.labels for branch in branches), key=len)
    shared = [(len(branch.labels & largest), len(branch.labels)) for branch in branches]
    return all(common >= least and 2 * common >= count for common, count in shared)


def _inside(folder: Path) -> Path:
    split = split_named(folder.name)
    for _ in range(_MAX_NESTED):
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
    """Return the last word of `name` that is not filler, or "" if there is none, as in `images_1`."""
    words = map(bare_name, re.split(r"[\W_]+", name))
    return next((word for word in reversed(list(words)) if word), "")
