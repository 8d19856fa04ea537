"""Warning for symbolic links that lead out of a source.

Such links are followed, because a class folder may be on another disk. A source that is itself a link does
not count as leading out.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.data.readers.read_result import name_of
from trainer.sanitize import printable


def links_sentence(paths: Iterable[Path], root: Path) -> str:
    """Return a warning with the number of links from `root` to `paths` outside it, or "" if there is none."""
    links = Counter(_links_out(paths, root))
    if not links:
        return ""
    first = min(links)
    example = f"{name_of(first, root)} -> {printable(os.path.realpath(first))}"
    files = f"{links.total():,} file{'s' if links.total() > 1 else ''} read"
    if len(links) == 1:
        return f"a symbolic link leads out of the source and is followed: {example} ({files})"
    count = f"{len(links):,} symbolic links lead out of the source and are followed"
    return f"{count}, such as {example} ({files})"


def _links_out(paths: Iterable[Path], root: Path) -> Iterator[Path]:
    """Yield, for each of `paths`, the topmost link that leads out of `root`, if there is one."""
    real_root = os.path.realpath(root)
    in_folders = defaultdict(list)
    for path in paths:
        in_folders[path.parent].append(path)
    for folder, files in in_folders.items():
        if root not in (folder, *folder.parents):
            continue  # the table lists a path outside the root
        below = [folder, *folder.parents][: len(folder.parts) - len(root.parts)]
        link = next((each for each in reversed(below) if _leads_out(each, real_root)), None)
        yield from (link or file for file in files if link or _leads_out(file, real_root))


def _leads_out(path: Path, real_root: str) -> bool:
    if not path.is_symlink():
        return False
    return os.path.commonpath([os.path.realpath(path), real_root]) != real_root
