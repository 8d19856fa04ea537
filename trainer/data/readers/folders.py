"""Class folders, whose names are the labels, and the choice between them and a table.

Supports a folder of class folders, and a folder with `train/` and `validation/` or `test/` (under any common
name) that contain class folders, or images named `class.number`; each can be nested in a wrapper folder. Each
candidate becomes an item with its split or None, each other file a rejection. A warning is returned for
images that are left out. `plan` decides how each folder is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.data.items import Item, Rejection, normalized
from trainer.data.readers.import_files import describe_unused_tables, has_columns
from trainer.data.readers.plan import ClassFolder, Exclusion, plan_folders
from trainer.data.readers.read_result import (
    ReadResult,
    display_name,
    find_rejection,
    hidden_folders,
    identity,
    is_picture,
    list_files,
    list_folder,
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
        files = list_files(folder, excluded)
        for path in files:
            _add_file(result, path, printable(label), split, root)
        if len(result.items) == count:
            raise DataError(
                "A class folder contains no images.",
                "Add images to it or remove it.",
                received=f"{display_name(folder, root)} (other files in it: {len(files)})",
            )
        inner = sorted({item.path.parent for item in result.items[count:]})
        if len(inner) > 1 and folder not in inner:
            examples = ", ".join(printable(subfolder.name) for subfolder in inner[:2])
            nested.append(f"{display_name(folder, root)}/ ({examples})")
    if nested:
        more = f" and {len(nested) - 1:,} more" if len(nested) > 1 else ""
        result.warnings.append(
            f"several folders of images are used as one class: {nested[0]}{more}; if the inner folders are "
            "the classes, set data.source to the folder that contains them"
        )


def _add_file(result: ReadResult, path: Path, label: str, split: str | None, root: Path) -> None:
    name = display_name(path, root)
    rejection = find_rejection(path, name)
    if rejection:
        result.rejections.append(rejection)
    else:
        result.items.append(Item(name, label, split, path))


def _leave_out(result: ReadResult, exclusion: Exclusion, root: Path) -> None:
    """Reject files outside the class folders, images as undamaged and with a warning."""
    paths = list_files(exclusion.source) if isinstance(exclusion.source, Path) else exclusion.source
    pictures = []
    for path in paths:
        name = display_name(path, root)
        rejection = find_rejection(path, name)
        result.rejections.append(rejection or Rejection(name, exclusion.reason, damaged=False))
        pictures += [] if rejection else [name]
    if not pictures:
        return
    count = "1 image" if len(pictures) == 1 else f"{len(pictures):,} images"
    if isinstance(exclusion.source, Path):
        result.warnings.append(
            f"{display_name(exclusion.source, root)}/ ({count}) is not used: {exclusion.advice}"
        )
    else:
        result.warnings.append(f"not used: {count} {exclusion.reason}, such as {pictures[0]}")


_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


def folders_beside_tables(root: Path) -> ReadResult:
    """Read the class folders of `root`, whose tables are unusable. Raises DataError with the reasons."""
    unused = describe_unused(root)
    try:
        result = read_folders(root)
    except DataError as error:
        problem = ". ".join([*unused, error.problem])
        raise DataError(problem, error.remedy, error.received) from None
    if not result.items:
        _require_no_archives(root)
    if unused and len({item.label for item in result.items}) < 2:
        raise DataError(
            f"The source has fewer than two class folders, and {'; '.join(unused)}.",
            "Correct the table, or set data.layout=folders to ignore it.",
            received=printable(str(root)),
        )
    result.warnings += unused
    return result


def _require_no_archives(root: Path) -> None:
    files = [path for folder in wrapped_folders(root) for path in list_folder(folder)[1]]
    archives = [display_name(path, root) for path in files if path.name.lower().endswith(_ARCHIVES)]
    if archives:
        raise DataError(
            "The source contains archives and no images. Archives in a folder or in another archive are not "
            "unpacked.",
            "Unpack them, or set data.source to one of them.",
            received=f"{', '.join(archives)} in {printable(str(root))}",
        )


def tables_beside_folders(
    listed: ReadResult, files: list[Path], root: Path, is_chosen: bool, is_multi: bool = False
) -> tuple[ReadResult, str]:
    """Return the images that the tables in `files` list, and the name of the layout.

    Unless the import layout is requested (`is_chosen`), class folders take precedence in two cases: the
    tables, with named columns, list less than half of the images, or they give the same labels as the folders
    to fewer images. With `is_multi` they never do, because folders cannot give an image several labels.
    Raises DataError.
    """
    if not any(map(has_columns, files)):
        return listed, "import"
    paths = {item.path for item in listed.items}
    unlisted = [path for path in list_files(root) if path not in paths and is_picture(path)]
    names = ", ".join(display_name(file, root) for file in files)
    folders = None if is_chosen or is_multi else _read_class_folders(root)
    folder_labels = {} if folders is None else {item.path: item.label for item in folders.items}
    shared = [item for item in listed.items if item.path in folder_labels]
    has_same_labels = all(normalized(item.label) == folder_labels[item.path] for item in shared)
    is_part = has_same_labels and len(shared) == len(listed.items) and len(paths) < len(folder_labels)
    if folders is not None and (len(unlisted) > len(paths) or is_part):
        count = len(paths) + len(unlisted)
        folders.warnings.append(f"{names} is not used: it lists only {len(paths):,} of {count:,} images")
        return folders, "folders"
    if not has_same_labels:
        listed.warnings.append(
            f"the classes are the labels in {names}, not the folders of the images; set data.layout=folders "
            "to use the folders"
        )
    listed.warnings += [*_reject_unlisted(unlisted, listed, names, root)]
    listed.warnings += describe_unused(root, files, is_multi)
    return listed, "import"


def _reject_unlisted(paths: list[Path], listed: ReadResult, names: str, root: Path) -> list[str]:
    listed.rejections += [
        Rejection(display_name(path, root), "not listed in a table", damaged=False) for path in paths
    ]
    count = "1 image" if len(paths) == 1 else f"{len(paths):,} images"
    return (
        [f"not used: {count} not listed in {names}, such as {display_name(paths[0], root)}"] if paths else []
    )


def describe_unused(root: Path, used: Sequence[Path] = (), is_multi: bool = False) -> list[str]:
    """Return a sentence for each unusable table in `root` or in the wrapper folders below it."""
    return [
        sentence
        for folder in wrapped_folders(root)
        for sentence in describe_unused_tables(folder, used, is_multi)
    ]


def _read_class_folders(root: Path) -> ReadResult | None:
    try:
        result = read_folders(root)
    except DataError:
        return None
    return result if len({item.label for item in result.items}) > 1 else None
