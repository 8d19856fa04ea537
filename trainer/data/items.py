"""Metadata of images before decoding.

An `Item` is one image in a local file. A `Rejection` is one file that is not used. Neither contains pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

THRESHOLDS = "thresholds"
"""Training images for choosing the thresholds of a multi-label model; no weights are fitted to them."""
SPLITS = ("train", THRESHOLDS, "validation", "test")


@dataclass(frozen=True)
class Item:
    """One image: the location of its bytes and its labels."""

    name: str
    """Unique and stable: the path below the root of the source with '/', plus '#7' for record 7 of a file."""
    label: str
    split: str | None
    """'train', 'thresholds', 'validation' or 'test'; None until the data set is split."""
    path: Path
    offset: int = 0
    length: int | None = None
    """Number of bytes from `offset`; None means up to the end of the file."""
    encoding: Literal["image", "cifar"] = "image"
    """'image' is an encoded file; 'cifar' is 3,072 bytes of 32 x 32 pixels, channel by channel."""
    labels: tuple[str, ...] | None = None
    """With data.labels=multi all labels, sorted, and `label` is the result of `joined`; otherwise None."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the image: `label` alone, or all of `labels`."""
        return (self.label,) if self.labels is None else self.labels

    def read(self) -> bytes:
        """Return the image's bytes in the format of `encoding`. Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read() if self.length is None else file.read(self.length)


def joined(labels: Iterable[str]) -> str:
    """Return several labels as one string that does not depend on their order."""
    return "; ".join(sorted(labels))


class Source(Protocol):
    """One image of a split, independent of how its bytes are stored."""

    @property
    def name(self) -> str:
        """Unique and stable name."""

    @property
    def encoding(self) -> str:
        """'image' or 'cifar', as in `Item`."""

    def read(self) -> bytes:
        """Return the image's bytes in the format of `encoding`. Raises OSError."""


@dataclass(frozen=True)
class Rejection:
    """One file that is not used."""

    name: str
    reason: str
    damaged: bool = True
    """Whether it counts towards data.max_rejected; a file that was never an image does not."""

    @property
    def kind(self) -> str:
        """The part of the reason before the colon, which is the same for many files."""
        return self.reason.partition(":")[0]

    @property
    def detail(self) -> str:
        """The part of the reason that is specific to the file; empty if there is none."""
        return self.reason.partition(": ")[2]
