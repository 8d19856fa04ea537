"""Class names in Unicode normal form, and numeric labels: class indices or multi-hot vectors.

Class names from folders, tables, records and models are converted to the composed form (NFC). macOS writes
"é" as two characters, other systems as one; models of earlier versions may contain either form. An array of
labels is int32 [N] if each image has one class, and int32 [N, C] if an image has any number of labels.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.data.items import Item, joined

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
