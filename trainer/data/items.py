"""What is known of images before they are decoded.

In: nothing. Out: `Item`, one image somewhere in a local file, and `Rejection`, one file
that was left out. Neither holds pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

THRESHOLDS = "thresholds"
"""Training images that no weight is fitted to: with several labels an image they choose the thresholds."""
SPLITS = ("train", THRESHOLDS, "validation", "test")


@dataclass(frozen=True)
class Item:
    """One image: where its bytes are, and what is said of it."""

    name: str
    """Unique and stable: the path below the source's root with '/', plus '#7' for record 7 of a file."""
    label: str
    split: str | None
    """'train', 'thresholds', 'validation' or 'test'; None until the data are split."""
    path: Path
    offset: int = 0
    length: int | None = None
    """Bytes from `offset`; None means up to the end of the file."""
    encoding: Literal["image", "cifar"] = "image"
    """'image' is an encoded file; 'cifar' is 3,072 bytes of 32 x 32 pixels, channel by channel."""
    labels: tuple[str, ...] | None = None
    """With data.labels multi all of its labels, sorted, and `label` is `joined` of them; else None."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it is of: one, or as many as `labels` says."""
        return (self.label,) if self.labels is None else self.labels

    def read(self) -> bytes:
        """Return the image's bytes, encoded as `encoding` says. Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read() if self.length is None else file.read(self.length)


def joined(labels: Iterable[str]) -> str:
    """Return several labels as one text, the same for the same labels in any order."""
    return "; ".join(sorted(labels))


class Source(Protocol):
    """One image of a split, wherever its bytes are."""

    @property
    def name(self) -> str:
        """Unique and stable."""

    @property
    def encoding(self) -> str:
        """'image' or 'cifar', as of an `Item`."""

    def read(self) -> bytes:
        """Return the image's bytes, encoded as `encoding` says. Raises OSError."""


@dataclass(frozen=True)
class Rejection:
    """One file that was left out."""

    name: str
    reason: str
    damaged: bool = True
    """Counts towards data.max_rejected; a file that was never an image doesn't."""
