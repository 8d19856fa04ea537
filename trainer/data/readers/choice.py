"""Choice between tables and class folders as the source of labels.

Warnings name each table that is not used and count the images that are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.data.items import Rejection
from trainer.data.labels import normalized
from trainer.data.readers.folders import read_folders
from trainer.data.readers.import_files import describe_unused_tables, has_columns
from trainer.data.readers.read_result import (
    ReadResult,
    files_below,
    is_picture,
    list_folder,
    name_of,
    wrapped_folders,
)
from trainer.errors import DataError
from trainer.sanitize import printable

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
    archives = [name_of(path, root) for path in files if path.name.lower().endswith(_ARCHIVES)]
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
    unlisted = [path for path in files_below(root) if path not in paths and is_picture(path)]
    names = ", ".join(name_of(file, root) for file in files)
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
        Rejection(name_of(path, root), "not listed in a table", damaged=False) for path in paths
    ]
    count = "1 image" if len(paths) == 1 else f"{len(paths):,} images"
    return [f"not used: {count} not listed in {names}, such as {name_of(paths[0], root)}"] if paths else []


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
