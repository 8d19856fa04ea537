"""Shared helpers of the layout readers: file listing, display names, split names and rejections.

Names are relative to a source's root and printable.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.formats import SNIFF_BYTES, names_a_picture, picture_format
from trainer.data.items import Item, Rejection
from trainer.data.labels import normalized
from trainer.errors import DataError
from trainer.sanitize import printable

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif"})
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_OF_TOOLS = frozenset(
    {
        ".git",
        ".svn",
        ".hg",
        ".dvc",
        ".cache",
        ".huggingface",
        ".ipynb_checkpoints",
        ".idea",
        ".vscode",
        ".venv",
    }
    | {".thumbnails", ".trash", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems", ".ds_store"}
)
_MOST_WRAPPERS = 8
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "treino": "train",
    "treinamento": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "development": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "validacao": "validation",
    "validação": "validation",
    "test": "test",
    "testing": "test",
    "holdout": "test",
    "heldout": "test",
    "teste": "test",
}
# Filler words beside a split word in a name: training_set, seg_train, train2017, test images.
_FILLING = frozenset(
    {"", "set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "seg", "folder"}
)


@dataclass
class ReadResult:
    """Items, rejections and warnings that a reader collects."""

    items: list[Item] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """User-facing warnings, one sentence each."""


def name_of(path: Path, root: Path) -> str:
    """Return the printable path relative to `root`, with '/'; the whole path if it is not below `root`."""
    try:
        return printable(path.relative_to(root).as_posix())
    except ValueError:
        return printable(path.as_posix())


def split_named(name: str) -> str | None:
    """Return 'train', 'validation' or 'test' if the whole name denotes a split, in any case; else None.

    `seg_train`, `Training Set`, `test1` and `hold-out` do; `train station` does not.
    """
    return _SPLIT_WORDS.get(bare_name(name).removesuffix("set"))


def split_and_label(name: str) -> tuple[str, str] | None:
    """Return the split and the label in `train_cats` or `cats-test`, or None if either is missing."""
    words = [word for word in re.split(r"[\s_.-]+", _spaced(name)) if word]
    for split, rest in ((words[:1], words[1:]), (words[-1:], words[:-1])):
        if rest and split[0].lower() in _SPLIT_WORDS:
            return _SPLIT_WORDS[split[0].lower()], " ".join(rest)
    return None


def bare_name(name: str) -> str:
    """Return the words of `name` without filler words and digits, lower-cased and joined."""
    words = re.split(r"[\W\d_]+", _spaced(name).lower())
    return "".join(word for word in words if word not in _FILLING)


def _spaced(name: str) -> str:
    """Return `name` in NFC with a space between the words of `trainData` and `testA`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", normalized(name))


def split_among_words(name: str) -> str | None:
    """Return the split of the first split word in a file name, or None."""
    words = re.split(r"[\W\d_]+", _spaced(name).lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the other entries in `folder`, by name, without hidden and system files.

    Links count as their targets. Raises DataError if the folder cannot be read.
    """
    folders: list[Path] = []
    others: list[Path] = []
    try:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if not _is_hidden(entry.name):
                (folders if _leads_to_folder(entry) else others).append(Path(entry.path))
    except OSError as error:
        raise _unreadable(folder, error) from error
    return folders, others


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link loop, which is no image either


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(
        "A folder can't be read; check its permissions.",
        received=f"{printable(str(folder))} ({error.strerror})",
    )


Identity = tuple[int, int]
"""Device and inode of a folder; equal for all paths and links to it."""


def files_below(folder: Path, elsewhere: Set[Identity] = frozenset()) -> list[Path]:
    """Return all files in `folder` and below, by name, without hidden and system files.

    Each folder is visited once, even if links lead to it. Folders in `elsewhere` are skipped, except
    `folder`. Raises DataError.
    """
    here, seen = identity(folder), set[Identity]()
    files: list[Path] = []
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        found = identity(inside)
        if found in seen or (found in elsewhere and found != here):
            continue
        seen.add(found)
        folders, others = list_folder(inside)
        files += others
        waiting += reversed(folders)
    return files


def identity(folder: Path) -> Identity:
    """Return the identity of `folder`. Raises DataError."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def wrapped_folders(root: Path) -> list[Path]:
    """Return `root` and its chain of single nested folders, at most 8, which ends before a split folder."""
    chain = [root]
    for _ in range(_MOST_WRAPPERS):
        folders, _ = list_folder(chain[-1])
        if len(folders) != 1 or split_named(folders[0].name):
            break
        chain.append(folders[0])
    return chain


def hidden_folders(folder: Path) -> list[Path]:
    """Return the hidden folders in `folder`, by name, without those of tools such as `.git`."""
    with os.scandir(folder) as entries:
        named = [entry for entry in entries if entry.name.startswith(".") and _leads_to_folder(entry)]
    return sorted(Path(entry.path) for entry in named if entry.name.lower() not in _OF_TOOLS)


def is_picture(path: Path) -> bool:
    """Return whether the file is a candidate image."""
    return rejection_of(path, "") is None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def rejection_of(path: Path, name: str) -> Rejection | None:
    """Return the rejection of a file that cannot be an image, or None if it is a candidate.

    A candidate has the first bytes of any picture format. If that format cannot be decoded here, the image
    counts as damaged when it is read. A file with one of IMAGE_SUFFIXES is always a candidate.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "a link that leads nowhere" if path.is_symlink() else f"can't be read: {error.strerror}"
        return Rejection(name, reason)
    if not stat.S_ISREG(mode):
        return Rejection(name, "not a plain file", damaged=False)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or _is_picture(path):
        return None
    kind = printable(suffix) if suffix else "no extension"
    return Rejection(name, f"not an image type: {kind}", damaged=False)


def _is_picture(path: Path) -> bool:
    """Return whether the first bytes, or else the name, identify a picture.

    The name decides for an unreadable file and for the placeholder of a bucket's image, which is a file of
    zeros, see `trainer.data.placeholders`.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(SNIFF_BYTES)
    except OSError:
        start = b""
    return picture_format(start) is not None if any(start) else names_a_picture(path.name)
