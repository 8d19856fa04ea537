"""Class folders: the folder's name is the label.

In: a folder of class folders, or one of `train/` with `validation/` or `test/` (or val, valid,
training, testing, in any case) that hold class folders; either may lie in a wrapper folder. Out:
one item for each candidate, with its split or None, and a rejection for each other file.
"""

from __future__ import annotations

from pathlib import Path

from trainer.data.items import Item, Rejection
from trainer.data.layouts.found import (
    Found,
    files_below,
    identity,
    list_folder,
    name_of,
    rejection_of,
    split_named,
    wrapped_folders,
)
from trainer.exits import DataError
from trainer.printable import printable


def read_folders(root: Path) -> Found:
    """Read `root`; raises DataError for no class folder, an empty one, or a folder that can't be read."""
    # The innermost folder that holds folders: what is inside those is up to the classes.
    base = next((folder for folder in reversed(wrapped_folders(root)) if list_folder(folder)[0]), root)
    folders, files = list_folder(base)
    found = Found()
    _set_aside(found, files, root, "outside the class folders")
    if not _speaks_of_splits(folders, base):
        _read_classes(found, folders, None, root)
        return found
    for folder in folders:
        split = split_named(folder.name)
        if split is None:
            _set_aside(found, files_below(folder), root, "outside the folders of the splits")
            continue
        classes, files = list_folder(folder)
        _set_aside(found, files, root, "outside the class folders")
        _read_classes(found, classes, split, root)
    return found


def _speaks_of_splits(folders: list[Path], base: Path) -> bool:
    """Tell splits that hold classes from classes: a set of vehicles may well have a class `train`."""
    named = [folder for folder in folders if split_named(folder.name)]
    holding = [folder for folder in named if list_folder(folder)[0]]
    if named and len(named) == len(folders) and not holding:
        raise DataError(
            "The folders of the splits hold no class folders; put the images of each class into a folder "
            "that has its name. "
            f"Received: {printable(', '.join(folder.name for folder in named))} in {printable(str(base))}"
        )
    has_train = any(split_named(folder.name) == "train" for folder in holding)
    return has_train or (bool(holding) and len(named) == len(folders))


def _read_classes(found: Found, classes: list[Path], split: str | None, root: Path) -> None:
    # A link from one class into another, or above them all, would give images a second label.
    above = {each for folder in classes for each in folder.parents if each == root or root in each.parents}
    elsewhere = {identity(each) for each in (*classes, *above)}
    for folder in classes:
        before = len(found.items)
        files = files_below(folder, elsewhere)
        for path in files:
            _add(found, path, printable(folder.name), split, root)
        if len(found.items) == before:
            raise DataError(
                f"A class folder has no images; remove it or fill it. "
                f"Received: {name_of(folder, root)} (other files in it: {len(files)})"
            )


def _add(found: Found, path: Path, label: str, split: str | None, root: Path) -> None:
    name = name_of(path, root)
    rejection = rejection_of(path, name)
    if rejection:
        found.rejections.append(rejection)
    else:
        found.items.append(Item(name, label, split, path))


def _set_aside(found: Found, paths: list[Path], root: Path, where: str) -> None:
    """Reject files that lie where no class is, without holding it against the data."""
    for path in paths:
        name = name_of(path, root)
        found.rejections.append(rejection_of(path, name) or Rejection(name, where, damaged=False))
