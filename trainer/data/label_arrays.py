"""Numeric labels: class indices or multi-hot vectors.

An array is int32 [N] if each image has one class, and int32 [N, C] if an image has any number of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.data.items import Item, joined

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


def label_columns(labels: Labels, places: NDArray[np.int32]) -> Labels:
    """Return labels renumbered for other class names: class `i` becomes class `places[i]`."""
    if labels.ndim == 1:
        return np.asarray(places[labels], np.int32)
    moved = np.zeros_like(labels)
    moved[:, places] = labels
    return moved
