"""What is to be read of the folders of a source.

In: nothing. Out: `Plan`, which `plan` makes and `folders` follows, and `Ambiguous` where there can be none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trainer.data.layouts.branches import Branch

OUTSIDE_CLASSES = "outside the class folders"
OUTSIDE_SPLITS = "outside the folders of the splits"


class ClassFolder(NamedTuple):
    """A folder whose images have one label."""

    folder: Path
    label: str
    split: str | None


class LabelledImage(NamedTuple):
    """An image whose name has its label."""

    path: Path
    label: str
    split: str | None


class Aside(NamedTuple):
    """A folder, or files, whose images are left out."""

    place: Path | tuple[Path, ...]
    reason: str
    advice: str = ""


@dataclass
class Plan:
    """How the folders of a source are read."""

    classes: list[ClassFolder] = field(default_factory=list)
    images: list[LabelledImage] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)
    listed: list[Path] = field(default_factory=list)
    """The folders whose folders are classes or splits."""
    warnings: list[str] = field(default_factory=list)


class Ambiguous(Exception):  # noqa: N818
    """The folders may mean several things; the text says what was seen, and what to do."""

    def __init__(self, text: str, branches: Sequence[Branch]) -> None:
        super().__init__(text)
        self.names = ", ".join(branch.name for branch in branches)
