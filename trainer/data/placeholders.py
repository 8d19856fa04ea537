"""Placeholder files for bucket images; the bytes are downloaded on demand.

A listing of a bucket becomes a local folder in which each image is an empty (sparse) file of the right size,
so that a layout reader can read it. The images of selected items are downloaded later. This is for data sets
that exceed the disk of one machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from trainer.data.formats import names_a_picture
from trainer.data.items import Item
from trainer.errors import TemporaryError, UsageError
from trainer.storage import translate_errors, write_json
from trainer.storage.store import Entry, Store, open_store
from trainer.storage.transfers import transfer_all

FOLDER = "outlines"
"""Subfolder of the cache; each folder in it is one listing of a bucket."""
_ORIGIN = ".origin.json"


def can_be_placeholder(name: str) -> bool:
    """Return whether a file of this name has an image extension.

    Other files are downloaded immediately and detected by their contents, so images without an extension are
    found too.
    """
    return names_a_picture(PurePosixPath(name).name)


def write_placeholders(store: Store, entries: Sequence[Entry], folder: Path) -> None:
    """Create a placeholder file of the right size in `folder` for each of `entries`, the images of `store`.

    Raises TemporaryError, UsageError.
    """
    for entry in entries:
        path = folder / entry.name
        with translate_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                os.truncate(file.fileno(), entry.size)
    write_json(folder / _ORIGIN, {"uri": store.uri})


def download_placeholders(items: Sequence[Item], cache_dir: Path, folder: Path) -> tuple[Item, ...]:
    """Download the placeholders among `items` to the empty `folder`; return all items, with updated paths.

    Raises TemporaryError, also for an image that no longer exists, and UsageError.
    """
    listings = cache_dir / FOLDER
    paths = {
        item.path for item in items if listings in item.path.parents and can_be_placeholder(item.path.name)
    }
    targets = {path: folder / f"{number}{path.suffix}" for number, path in enumerate(sorted(paths))}
    roots = {path: listings / path.relative_to(listings).parts[0] for path in targets}
    stores = {root: _open_origin(root) for root in set(roots.values())}

    def download(path: Path) -> int:
        root = roots[path]
        name = path.relative_to(root).as_posix()
        try:
            stores[root].download(name, targets[path])
        except UsageError as error:
            if stores[root].find(name) is not None:
                raise
            raise TemporaryError(
                "An image was deleted from the bucket after it was listed.",
                "Run the same command again.",
                received=error,
            ) from None
        return 0

    transfer_all(download, targets, lambda size: None)
    return tuple(replace(item, path=targets.get(item.path, item.path)) for item in items)


def _open_origin(root: Path) -> Store:
    try:
        return open_store(json.loads((root / _ORIGIN).read_bytes())["uri"])
    except (OSError, ValueError, KeyError) as error:
        raise TemporaryError(
            "Another process changed the cache.", "Run the same command again.", received=f"{root} ({error})"
        ) from None
