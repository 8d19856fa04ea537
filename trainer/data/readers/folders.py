"""Class folders, whose names are the labels.

Supports a folder of class folders, and a folder with `train/` and `validation/` or `test/` (under any common
name) that contain class folders, or images named `class.number`; each can be nested in a wrapper folder. Each
candidate becomes an item with its split or None, each other file a rejection. A warning is returned for
images that are left out. `plan` decides how each folder is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.data.items import Item, Rejection
from trainer.data.readers.plan import plan_folders
from trainer.data.readers.planned import Aside, ClassFolder
from trainer.data.readers.read_result import (
    ReadResult,
    files_below,
    hidden_folders,
    identity,
    list_folder,
    name_of,
    rejection_of,
    wrapped_folders,
)
from trainer.errors import DataError
from trainer.sanitize import printable


def read_folders(root: Path, is_literal: bool = False) -> ReadResult:
    """Read the class folders of `root`; with `is_literal`, read ambiguous folders as class folders.

    Raises DataError for missing, empty or unreadable class folders, and for an ambiguous layout.
    """
    # The innermost folder that contains folders; `plan_folders` handles the levels below it.
    base = next((folder for folder in reversed(wrapped_folders(root)) if list_folder(folder)[0]), root)
    plan = plan_folders(base, is_literal)
    found = ReadResult(warnings=plan.warnings)
    for split in dict.fromkeys(each.split for each in plan.classes):
        _read_classes(found, [each for each in plan.classes if each.split == split], root)
    for image in plan.images:
        _add(found, image.path, printable(image.label), image.split, root)
    for aside in (*plan.aside, *_hidden(plan.listed)):
        _set_aside(found, aside, root)
    return found


def _hidden(listed: Sequence[Path]) -> list[Aside]:
    advice = "it is hidden; rename it if it is a class"
    return [Aside(each, "in a hidden folder", advice) for folder in listed for each in hidden_folders(folder)]


def _read_classes(found: ReadResult, classes: Sequence[ClassFolder], root: Path) -> None:
    # A link from one class to another, or to a parent of all, would give images a second label.
    above = {
        each for folder, *_ in classes for each in folder.parents if each == root or root in each.parents
    }
    elsewhere = {identity(each) for each in (*(folder for folder, *_ in classes), *above)}
    nested = []
    for folder, label, split in classes:
        before = len(found.items)
        files = files_below(folder, elsewhere)
        for path in files:
            _add(found, path, printable(label), split, root)
        if len(found.items) == before:
            raise DataError(
                "A class folder has no images; remove it or fill it.",
                received=f"{name_of(folder, root)} (other files in it: {len(files)})",
            )
        inner = sorted({item.path.parent for item in found.items[before:]})
        if len(inner) > 1 and folder not in inner:
            nested.append(
                f"{name_of(folder, root)}/ ({', '.join(printable(each.name) for each in inner[:2])})"
            )
    if nested:
        more = f" and {len(nested) - 1:,} more" if len(nested) > 1 else ""
        found.warnings.append(
            f"several folders of images are read as one class: {nested[0]}{more}; if these are the classes, "
            "give the folder above them as data.source"
        )


def _add(found: ReadResult, path: Path, label: str, split: str | None, root: Path) -> None:
    name = name_of(path, root)
    rejection = rejection_of(path, name)
    if rejection:
        found.rejections.append(rejection)
    else:
        found.items.append(Item(name, label, split, path))


def _set_aside(found: ReadResult, aside: Aside, root: Path) -> None:
    """Reject files outside the class folders, images as undamaged and with a warning."""
    paths = files_below(aside.place) if isinstance(aside.place, Path) else aside.place
    pictures = []
    for path in paths:
        name = name_of(path, root)
        rejection = rejection_of(path, name)
        found.rejections.append(rejection or Rejection(name, aside.reason, damaged=False))
        pictures += [] if rejection else [name]
    if not pictures:
        return
    count = "1 image" if len(pictures) == 1 else f"{len(pictures):,} images"
    if isinstance(aside.place, Path):
        found.warnings.append(f"{name_of(aside.place, root)}/ ({count}) is left out: {aside.advice}")
    else:
        found.warnings.append(f"{count} {aside.reason} left out, such as {pictures[0]}")
