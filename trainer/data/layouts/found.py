"""What the readers of all layouts share: which files count, and what things are called.

In: paths below a source's root. Out: names that can be printed and written anywhere, the
split that a name speaks of, and the reason why a file isn't a candidate.
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
from trainer.exits import DataError
from trainer.printable import printable

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
# What names of splits hold beside such a word: training_set, seg_train, train2017, test images.
_FILLING = frozenset(
    {"", "set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "seg", "folder"}
)


@dataclass
class Found:
    """What a reader gathers on its way."""

    items: list[Item] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What a person should read, a sentence each."""


def name_of(path: Path, root: Path) -> str:
    """Return the path below `root` with '/', printable; the whole path if it isn't below it."""
    try:
        return printable(path.relative_to(root).as_posix())
    except ValueError:
        return printable(path.as_posix())


def split_named(name: str) -> str | None:
    """Return 'train', 'validation' or 'test' if the whole name says so, in any case; else None.

    `seg_train`, `Training Set`, `test1` and `hold-out` do; `train station` doesn't.
    """
    return _SPLIT_WORDS.get(bare_name(name).removesuffix("set"))


def split_and_label(name: str) -> tuple[str, str] | None:
    """Return the split and the label in `train_cats` or `cats-test`; None if there aren't both."""
    words = [word for word in re.split(r"[\s_.-]+", _spaced(name)) if word]
    for split, rest in ((words[:1], words[1:]), (words[-1:], words[:-1])):
        if rest and split[0].lower() in _SPLIT_WORDS:
            return _SPLIT_WORDS[split[0].lower()], " ".join(rest)
    return None


def bare_name(name: str) -> str:
    """Return the words of `name` that tell something, in lower case and joined."""
    words = re.split(r"[\W\d_]+", _spaced(name).lower())
    return "".join(word for word in words if word not in _FILLING)


def _spaced(name: str) -> str:
    """Return `name` with a space between the words of `trainData` and `testA`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", normalized(name))


def split_among_words(name: str) -> str | None:
    """Return the split that the first telling word of a file's name says; None if none does."""
    words = re.split(r"[\W\d_]+", _spaced(name).lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the other entries in `folder`, by name; hidden ones and litter are left out.

    Links count as what they point to. Raises DataError if the folder can't be read.
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
        return False  # a link to itself, which is no image either


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(
        "A folder can't be read; check its permissions. "
        f"Received: {printable(str(folder))} ({error.strerror})"
    )


Identity = tuple[int, int]
"""What tells a folder from any other, by whatever path or link it is reached."""


def files_below(folder: Path, elsewhere: Set[Identity] = frozenset()) -> list[Path]:
    """Return all files in `folder` and below, by name; hidden ones and litter are left out.

    No folder is entered twice, and none of `elsewhere` but itself, whatever links lead there.
    Raises DataError.
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
    """Return what tells `folder` from any other. Raises DataError."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def wrapped_folders(root: Path) -> list[Path]:
    """Return `root`, the only folder in it, the only one in that, and so on, while no name is a split's."""
    chain = [root]
    for _ in range(_MOST_WRAPPERS):
        folders, _ = list_folder(chain[-1])
        if len(folders) != 1 or split_named(folders[0].name):
            break
        chain.append(folders[0])
    return chain


def hidden_folders(folder: Path) -> list[Path]:
    """Return the folders in `folder` that only their leading dot hides, by name; not those of tools."""
    with os.scandir(folder) as entries:
        named = [entry for entry in entries if entry.name.startswith(".") and _leads_to_folder(entry)]
    return sorted(Path(entry.path) for entry in named if entry.name.lower() not in _OF_TOOLS)


def is_picture(path: Path) -> bool:
    """Return whether the file counts as an image."""
    return rejection_of(path, "") is None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def rejection_of(path: Path, name: str) -> Rejection | None:
    """Return the rejection of a file that can't be an image, None if it is a candidate.

    A candidate is a picture of any format by its first bytes, also of one that can't be read here: that
    counts as damaged when it is read. With one of IMAGE_SUFFIXES a file is a candidate whatever it holds.
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
    """Return whether the first bytes are a picture's, or the name where there are none.

    The placeholder of a bucket's image is a file of zeros, see `trainer.data.outline`.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(SNIFF_BYTES)
    except OSError:
        start = b""
    return picture_format(start) is not None if any(start) else names_a_picture(path.name)
