"""Metadata of images before decoding, and their labels.

An `Item` is one image in a local file. A `Rejection` is one file that is not used. Neither contains pixels.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

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
    group: str | None = None
    """Name of the group of images that belong together, by data.group; None for an image of its own."""

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


Value = TypeVar("Value")


def normalized(label: str) -> str:
    """Return `label` in NFC, the form that all labels have once they are read."""
    return unicodedata.normalize("NFC", label)


def all_normalized(labels: Iterable[str]) -> tuple[str, ...]:
    """Return `labels` in NFC, in the same order."""
    return tuple(map(normalized, labels))


def numbers_of(class_names: Sequence[str]) -> dict[str, int]:
    """Return the index of each class by its normalized name; of equal names, the first index."""
    return {normalized(name): number for number, name in reversed(list(enumerate(class_names)))}


def by_normalized(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return `values` keyed by normalized class names."""
    return {normalized(name): value for name, value in values.items()}


Labels = NDArray[np.int32]


def label_array(items: Sequence[Item], numbers: Mapping[str, int], is_multi: bool) -> Labels:
    """Return the labels of `items`; `numbers` contains the index of every class by name."""
    if not is_multi:
        return np.asarray([numbers[item.label] for item in items], np.int32)
    matrix = np.zeros((len(items), 1 + max(numbers.values())), np.int32)
    for row, item in enumerate(items):
        matrix[row, [numbers[label] for label in item.classes]] = 1
    return matrix


def label_counts(labels: Labels, classes: int) -> NDArray[np.int64]:
    """Return the number of images of each class, int64 [classes]."""
    if labels.ndim == 2:
        return np.asarray(labels.sum(axis=0), np.int64)
    return np.asarray(np.bincount(labels, minlength=classes), np.int64)


def label_texts(labels: Labels, class_names: Sequence[str]) -> list[str]:
    """Return the label of each image in the format of `Item.label`."""
    if labels.ndim == 2:
        return [joined(class_names[label] for label in np.flatnonzero(row).tolist()) for row in labels]
    return [class_names[label] for label in labels]


def renumber_labels(labels: Labels, new_numbers: NDArray[np.int32]) -> Labels:
    """Return labels renumbered for other class names: class `i` becomes class `new_numbers[i]`."""
    if labels.ndim == 1:
        return np.asarray(new_numbers[labels], np.int32)
    renumbered = np.zeros_like(labels)
    renumbered[:, new_numbers] = labels
    return renumbered
