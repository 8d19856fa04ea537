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
from trainer.data.readers.plan import ClassFolder, Exclusion, plan_folders
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
    result = ReadResult(warnings=plan.warnings)
    for split in dict.fromkeys(folder.split for folder in plan.classes):
        _read_classes(result, [folder for folder in plan.classes if folder.split == split], root)
    for image in plan.images:
        _add_file(result, image.path, printable(image.label), image.split, root)
    for exclusion in (*plan.exclusions, *_find_hidden(plan.listed)):
        _leave_out(result, exclusion, root)
    return result


def _find_hidden(listed: Sequence[Path]) -> list[Exclusion]:
    advice = "it is hidden; rename it if it is a class"
    hidden = [folder for parent in listed for folder in hidden_folders(parent)]
    return [Exclusion(folder, "in a hidden folder", advice) for folder in hidden]


def _read_classes(result: ReadResult, classes: Sequence[ClassFolder], root: Path) -> None:
    # A link from one class to another, or to a parent of all, would give images a second label.
    parents = {
        parent for folder, *_ in classes for parent in folder.parents if root in (parent, *parent.parents)
    }
    excluded = {identity(folder) for folder in (*(folder for folder, *_ in classes), *parents)}
    nested = []
    for folder, label, split in classes:
        count = len(result.items)
        files = files_below(folder, excluded)
        for path in files:
            _add_file(result, path, printable(label), split, root)
        if len(result.items) == count:
            raise DataError(
                "A class folder contains no images.",
                "Add images to it or remove it.",
                received=f"{name_of(folder, root)} (other files in it: {len(files)})",
            )
        inner = sorted({item.path.parent for item in result.items[count:]})
        if len(inner) > 1 and folder not in inner:
            examples = ", ".join(printable(subfolder.name) for subfolder in inner[:2])
            nested.append(f"{name_of(folder, root)}/ ({examples})")
    if nested:
        more = f" and {len(nested) - 1:,} more" if len(nested) > 1 else ""
        result.warnings.append(
            f"several folders of images are used as one class: {nested[0]}{more}; if the inner folders are "
            "the classes, set data.source to the folder that contains them"
        )


def _add_file(result: ReadResult, path: Path, label: str, split: str | None, root: Path) -> None:
    name = name_of(path, root)
    rejection = rejection_of(path, name)
    if rejection:
        result.rejections.append(rejection)
    else:
        result.items.append(Item(name, label, split, path))


def _leave_out(result: ReadResult, exclusion: Exclusion, root: Path) -> None:
    """Reject files outside the class folders, images as undamaged and with a warning."""
    paths = files_below(exclusion.source) if isinstance(exclusion.source, Path) else exclusion.source
    pictures = []
    for path in paths:
        name = name_of(path, root)
        rejection = rejection_of(path, name)
        result.rejections.append(rejection or Rejection(name, exclusion.reason, damaged=False))
        pictures += [] if rejection else [name]
    if not pictures:
        return
    count = "1 image" if len(pictures) == 1 else f"{len(pictures):,} images"
    if isinstance(exclusion.source, Path):
        result.warnings.append(
            f"{name_of(exclusion.source, root)}/ ({count}) is not used: {exclusion.advice}"
        )
    else:
        result.warnings.append(f"not used: {count} {exclusion.reason}, such as {pictures[0]}")
