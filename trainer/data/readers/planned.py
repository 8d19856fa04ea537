"""Reading plan for the folders of a source.

`plan` builds a `LayoutPlan`, which `folders` executes, or raises `Ambiguous`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trainer.data.readers.branches import Branch

OUTSIDE_CLASSES = "outside the class folders"
OUTSIDE_SPLITS = "outside the folders of the splits"


class ClassFolder(NamedTuple):
    """A folder whose images have one label."""

    folder: Path
    label: str
    split: str | None


class LabelledImage(NamedTuple):
    """An image whose file name contains its label."""

    path: Path
    label: str
    split: str | None


class Aside(NamedTuple):
    """A folder, or files, whose images are left out."""

    place: Path | tuple[Path, ...]
    reason: str
    advice: str = ""


@dataclass
class LayoutPlan:
    """How the folders of a source are read."""

    classes: list[ClassFolder] = field(default_factory=list)
    images: list[LabelledImage] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)
    listed: list[Path] = field(default_factory=list)
    """Folders that contain the classes or splits."""
    warnings: list[str] = field(default_factory=list)


class Ambiguous(Exception):  # noqa: N818
    """Ambiguous folder structure; the message describes it and how to resolve it."""

    def __init__(self, text: str, branches: Sequence[Branch]) -> None:
        super().__init__(text)
        self.names = ", ".join(branch.name for branch in branches)
