"""Shared helpers of the layout readers: file listing, display names, split names, rejections, label files.

Names are relative to a source's root and printable.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.formats import SNIFF_BYTES, names_a_picture, picture_format
from trainer.data.items import Item, Rejection, normalized
from trainer.errors import DataError
from trainer.sanitize import printable

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif"})
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_TOOL_FOLDERS = frozenset(
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
_MAX_WRAPPERS = 8
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
_FILLER_WORDS = frozenset(
    {"", "set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "seg", "folder"}
)
_NUMBERED_LABEL = re.compile(r"(\d+)\s*:\s*(.+)")


@dataclass
class ReadResult:
    """Items, rejections and warnings that a reader collects."""

    items: list[Item] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """User-facing warnings, one sentence each."""


def display_name(path: Path, root: Path) -> str:
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
    return "".join(word for word in words if word not in _FILLER_WORDS)


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
                (folders if _is_folder(entry) else others).append(Path(entry.path))
    except OSError as error:
        raise _folder_error(folder, error) from error
    return folders, others


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link loop, which is no image either


def _folder_error(folder: Path, error: OSError) -> DataError:
    return DataError(
        "A folder cannot be read.",
        "Check its path and its permissions.",
        received=f"{printable(str(folder))} ({error.strerror})",
    )


Identity = tuple[int, int]
"""Device and inode of a folder; equal for all paths and links to it."""


def list_files(folder: Path, excluded: Set[Identity] = frozenset()) -> list[Path]:
    """Return all files in `folder` and below, by name, without hidden and system files.

    Each folder is visited once, even if links lead to it. Folders in `excluded` are skipped, except `folder`.
    Raises DataError.
    """
    root_identity, visited = identity(folder), set[Identity]()
    files: list[Path] = []
    stack = [folder]
    while stack:
        current = stack.pop()
        current_identity = identity(current)
        if current_identity in visited or (
            current_identity in excluded and current_identity != root_identity
        ):
            continue
        visited.add(current_identity)
        folders, others = list_folder(current)
        files += others
        stack += reversed(folders)
    return files


def files_of_splits(folder: Path) -> list[Path]:
    """Return the files in `folder` and in its folders with split names. Raises DataError."""
    folders, files = list_folder(folder)
    for subfolder in folders:
        files += list_folder(subfolder)[1] if split_named(subfolder.name) else []
    return files


def identity(folder: Path) -> Identity:
    """Return the identity of `folder`. Raises DataError."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _folder_error(folder, error) from error
    return status.st_dev, status.st_ino


def wrapped_folders(root: Path) -> list[Path]:
    """Return `root` and its chain of single nested folders, at most 8, which ends before a split folder."""
    chain = [root]
    for _ in range(_MAX_WRAPPERS):
        folders, _ = list_folder(chain[-1])
        if len(folders) != 1 or split_named(folders[0].name):
            break
        chain.append(folders[0])
    return chain


def hidden_folders(folder: Path) -> list[Path]:
    """Return the hidden folders in `folder`, by name, without those of tools such as `.git`."""
    with os.scandir(folder) as entries:
        hidden = [entry for entry in entries if entry.name.startswith(".") and _is_folder(entry)]
    return sorted(Path(entry.path) for entry in hidden if entry.name.lower() not in _TOOL_FOLDERS)


def is_picture(path: Path) -> bool:
    """Return whether the file is a candidate image."""
    return find_rejection(path, "") is None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def find_rejection(path: Path, name: str) -> Rejection | None:
    """Return the rejection of a file that cannot be an image, or None if it is a candidate.

    A candidate has the first bytes of any picture format. If that format cannot be decoded here, the image
    counts as damaged when it is read. A file with one of IMAGE_SUFFIXES is always a candidate.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "broken symbolic link" if path.is_symlink() else f"cannot be read: {error.strerror}"
        return Rejection(name, reason)
    if not stat.S_ISREG(mode):
        return Rejection(name, "not a regular file", damaged=False)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or _is_picture(path):
        return None
    kind = printable(suffix) if suffix else "no extension"
    return Rejection(name, f"not an image type: {kind}", damaged=False)


def _is_picture(path: Path) -> bool:
    """Return whether the first bytes, or else the name, identify a picture.

    The name decides for an unreadable file and for the placeholder of a bucket's image, which is a file of
    zeros, see `trainer.data.bucket`.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(SNIFF_BYTES)
    except OSError:
        start = b""
    return picture_format(start) is not None if any(start) else names_a_picture(path.name)


def read_label_names(path: Path) -> dict[int, str]:
    """Read a file of `7:cat` lines, or of plain names numbered from 0; return {} if there is no file.

    Raises DataError if the file cannot be read.
    """
    try:
        text = path.read_text("utf-8", "backslashreplace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(
            f"{path.name} cannot be read.",
            "Check its permissions.",
            received=f"{printable(str(path.parent))} ({error.strerror})",
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [_NUMBERED_LABEL.fullmatch(line) for line in lines]
    if lines and all(numbered):
        return {int(match[1]): match[2] for match in numbered if match}
    return dict(enumerate(lines))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, or None if the file is missing or invalid."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def describe_links(paths: Iterable[Path], root: Path) -> str:
    """Return a warning about symbolic links from `root` to `paths` outside it, or "" if there is none.

    Such links are followed, because a class folder may be on another disk. A source that is itself a link
    does not count as leading out.
    """
    links = Counter(_find_external_links(paths, root))
    if not links:
        return ""
    first = min(links)
    example = f"{display_name(first, root)} -> {printable(os.path.realpath(first))}"
    files = f"{links.total():,} file{'s' if links.total() > 1 else ''} read"
    if len(links) == 1:
        return f"following a symbolic link to outside of the source: {example} ({files})"
    return f"following {len(links):,} symbolic links to outside of the source, such as {example} ({files})"


def _find_external_links(paths: Iterable[Path], root: Path) -> Iterator[Path]:
    """Yield, for each of `paths`, the topmost link that leads out of `root`, if there is one."""
    real_root = os.path.realpath(root)
    paths_by_folder = defaultdict(list)
    for path in paths:
        paths_by_folder[path.parent].append(path)
    for folder, files in paths_by_folder.items():
        if root not in (folder, *folder.parents):
            continue  # the table lists a path outside the root
        chain = [folder, *folder.parents][: len(folder.parts) - len(root.parts)]
        link = next((parent for parent in reversed(chain) if _is_external_link(parent, real_root)), None)
        yield from (link or file for file in files if link or _is_external_link(file, real_root))


def _is_external_link(path: Path, real_root: str) -> bool:
    if not path.is_symlink():
        return False
    return os.path.commonpath([os.path.realpath(path), real_root]) != real_root
