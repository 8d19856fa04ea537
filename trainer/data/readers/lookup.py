"""Lookup of images by the names in a table.

A cell is a path, a file name, or a name without extension (`ISIC_0027419`). The files are listed once, when
the first cell is not an existing path.
"""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from trainer.data.formats import SNIFF_BYTES
from trainer.data.labels import normalized
from trainer.data.readers.read_result import files_below, is_picture, split_named

_EXAMPLES = 2


class Lookup:
    """Index of the files below one folder, by name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, uri: str, table: Path, split: str | None) -> Path | str | None:
        """Return the image that `uri` refers to in `table`, or None if there is none.

        Of several matches, the one in a folder of the row's `split` is chosen, or the first if all are
        copies. Returns the reason as text if the name is ambiguous.
        """
        if is_file(uri, table):
            return resolve_path(uri, table)
        parts = tuple(normalized(part) for part in PurePosixPath(uri.replace("\\", "/")).parts)
        if not parts or parts[0] == "/" or ".." in parts:
            return None
        matches = [
            path
            for path in self._by_name.get(parts[-1], ())
            if self._has_suffix(path, parts) and is_picture(path)
        ]
        if len(matches) > 1 and split is not None:
            matches = [path for path in matches if self.find_split(path) == split] or matches
        if len(matches) > 1 and _are_copies(matches):
            return matches[0]
        if len(matches) > 1:
            names = ", ".join(str(path.relative_to(self._root)) for path in matches[:_EXAMPLES])
            return f"ambiguous name: several images are called {uri}: {names}"
        return matches[0] if matches else None

    def find_split(self, path: Path) -> str | None:
        """Return the split of the topmost folder with a split name above `path`, or None."""
        try:
            folders = path.relative_to(self._root).parts[:-1]
        except ValueError:
            return None
        return next((split for split in map(split_named, folders) if split), None)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Files by name, with and without extension."""
        paths: defaultdict[str, list[Path]] = defaultdict(list)
        for path in files_below(self._root):
            for name in {normalized(path.name), normalized(path.stem)}:
                paths[name].append(path)
        return paths

    def _has_suffix(self, path: Path, parts: tuple[str, ...]) -> bool:
        folders = tuple(map(normalized, path.relative_to(self._root).parts[:-1]))
        suffix = parts[:-1]
        return not suffix or folders[-len(suffix) :] == suffix


def resolve_path(uri: str, table: Path) -> Path:
    """Return the path that `uri` refers to, relative to the folder of `table`."""
    if uri.lower().startswith("file://"):
        return Path(unquote("/" + uri[len("file://") :].partition("/")[2]))
    path = table.parent / uri
    return Path(os.path.normpath(path)) if ".." in path.parts else path


def _are_copies(paths: Sequence[Path]) -> bool:
    """Return whether all files have the same bytes; False for placeholders of a bucket's images."""
    try:
        with open(paths[0], "rb") as file:
            has_data = any(file.read(SNIFF_BYTES))
        return has_data and all(filecmp.cmp(paths[0], path, shallow=False) for path in paths[1:])
    except OSError:
        return False


def is_file(uri: str, table: Path) -> bool:
    """Return whether `uri` is the path of a file, relative to the folder of `table`."""
    try:
        return resolve_path(uri, table).is_file()
    except (OSError, ValueError):
        # The path is too long or contains invalid characters.
        return False
