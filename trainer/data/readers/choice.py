"""Choice between tables and class folders as the source of labels.

Warnings name each table that is not used and count the images that are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.data.items import Rejection
from trainer.data.labels import normalized
from trainer.data.readers.folders import read_folders
from trainer.data.readers.import_files import has_columns, unused_tables
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
    unused = unused_below(root)
    try:
        found = read_folders(root)
    except DataError as error:
        raise DataError(f"{'. '.join([*unused, str(error)])}") from None
    if not found.items:
        _require_no_archives(root)
    if unused and len({item.label for item in found.items}) < 2:
        raise DataError(
            f"There are not two class folders, and {'; '.join(unused)}. Correct the table, or set "
            f"data.layout=folders to pass it over.",
            received=f"{printable(str(root))}",
        )
    found.warnings += unused
    return found


def _require_no_archives(root: Path) -> None:
    files = [path for folder in wrapped_folders(root) for path in list_folder(folder)[1]]
    archives = [name_of(path, root) for path in files if path.name.lower().endswith(_ARCHIVES)]
    if archives:
        raise DataError(
            "The source holds archives and no images; archives in a folder or in another archive are not "
            "unpacked: unpack them, or give one of them as data.source.",
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
    known = {item.path for item in listed.items}
    rest = [path for path in files_below(root) if path not in known and is_picture(path)]
    names = ", ".join(name_of(file, root) for file in files)
    found = None if is_chosen or is_multi else _class_folders(root)
    in_folders = {} if found is None else {item.path: item.label for item in found.items}
    shared = [item for item in listed.items if item.path in in_folders]
    is_agreed = all(normalized(item.label) == in_folders[item.path] for item in shared)
    is_part = is_agreed and len(shared) == len(listed.items) and len(known) < len(in_folders)
    if found is not None and (len(rest) > len(known) or is_part):
        count = len(known) + len(rest)
        found.warnings.append(f"{names} is not used: it lists only {len(known):,} of {count:,} images")
        return found, "folders"
    if not is_agreed:
        listed.warnings.append(
            f"the classes are the labels in {names}, not the folders of the images; set data.layout=folders "
            "to take the folders"
        )
    listed.warnings += [*_set_aside(rest, listed, names, root), *unused_below(root, files, is_multi)]
    return listed, "import"


def _set_aside(rest: list[Path], listed: ReadResult, names: str, root: Path) -> list[str]:
    listed.rejections += [
        Rejection(name_of(path, root), "not in the table of images", damaged=False) for path in rest
    ]
    counted = "1 image" if len(rest) == 1 else f"{len(rest):,} images"
    return [f"{counted} not listed in {names} left out, such as {name_of(rest[0], root)}"] if rest else []


def unused_below(root: Path, used: Sequence[Path] = (), is_multi: bool = False) -> list[str]:
    """Return a sentence for each unusable table in `root` or in the wrapper folders below it."""
    return [
        sentence for folder in wrapped_folders(root) for sentence in unused_tables(folder, used, is_multi)
    ]


def _class_folders(root: Path) -> ReadResult | None:
    try:
        found = read_folders(root)
    except DataError:
        return None
    return found if len({item.label for item in found.items}) > 1 else None
