"""Tables beside folders: which of them says what the images are.

In: the folder of a source and what its tables list. Out: what is read, with a sentence for each table and for
the images that are left out.
"""

from __future__ import annotations

from pathlib import Path

from trainer.data.items import Rejection
from trainer.data.layouts.folders import read_folders
from trainer.data.layouts.found import Found, files_below, is_picture, name_of, wrapped_folders
from trainer.data.layouts.import_files import has_columns, unused_tables
from trainer.exits import DataError
from trainer.printable import printable


def folders_beside_tables(root: Path) -> Found:
    """Read the folders of `root`, none of whose tables can be used. Raises DataError, which names these."""
    unused = unused_below(root)
    try:
        found = read_folders(root)
    except DataError as error:
        raise DataError(f"{'. '.join([*unused, str(error)])}") from None
    if unused and len({item.label for item in found.items}) < 2:
        raise DataError(
            f"There are not two class folders, and {'; '.join(unused)}. Correct the table, or set "
            f"data.layout=folders to pass it over. Received: {printable(str(root))}"
        )
    found.warnings += unused
    return found


def tables_beside_folders(listed: Found, files: list[Path], root: Path, is_chosen: bool) -> tuple[Found, str]:
    """Return what the tables in `files` list, and the name of the layout.

    Unless the tables were chosen, class folders are read where most images are in no table whose columns have
    names. Raises DataError.
    """
    if not any(map(has_columns, files)):
        return listed, "import"
    known = {item.path for item in listed.items}
    rest = [path for path in files_below(root) if path not in known and is_picture(path)]
    names = ", ".join(name_of(file, root) for file in files)
    if len(rest) > len(known) and not is_chosen and (found := _class_folders(root)) is not None:
        count = len(known) + len(rest)
        found.warnings.append(f"{names} is not used: it lists only {len(known):,} of {count:,} images")
        return found, "folders"
    if rest:
        listed.rejections += [
            Rejection(name_of(path, root), "not in the table of images", damaged=False) for path in rest
        ]
        counted = "1 image" if len(rest) == 1 else f"{len(rest):,} images"
        listed.warnings.append(f"{counted} not listed in {names} left out, such as {name_of(rest[0], root)}")
    listed.warnings += unused_below(root)
    return listed, "import"


def unused_below(root: Path) -> list[str]:
    """Return a sentence for each table in `root`, or in the folders that wrap its data, which isn't used."""
    return [sentence for folder in wrapped_folders(root) for sentence in unused_tables(folder)]


def _class_folders(root: Path) -> Found | None:
    try:
        found = read_folders(root)
    except DataError:
        return None
    return found if len({item.label for item in found.items}) > 1 else None
