"""Validation of multi-label data sets before training.

The checks work on items. They raise a DataError that names the labels and the remedy, or return warnings.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data.items import THRESHOLDS, Item
from trainer.errors import DataError

_EXAMPLES = 3


def require_labels(candidates: Sequence[Item], kept: Sequence[Item]) -> None:
    """Raise DataError if a label has no image left, or if there are fewer than two labels."""
    before, left = _labels(candidates), _labels(kept)
    if before - left:
        raise DataError(
            "No image of a label could be decoded; repair them or remove the label.",
            received=f"{_listed(before - left)}",
        )
    if len(before) < 2:
        raise DataError(
            "With data.labels=multi there must be at least two labels. Whether an image has one label or not "
            "is a question of two classes: give each image one of two, such as yes and no, and set "
            "data.labels=single.",
            received=f"{_listed(before) or 'no label'}",
        )


def require_trained_labels(items: Sequence[Item]) -> None:
    """Raise DataError if there are no training or no held-out images, or if a label has no training image."""
    train = [item for item in items if item.split == "train"]
    held_out = [item for item in items if item.split not in ("train", THRESHOLDS)]
    if not train or not held_out:
        wanted = "validation" if train else "train"
        raise DataError(
            f"There are no images in {wanted}; give rows of it in the column split, or leave the column out, "
            f"so that a share is held out.",
            received=f"{len(items)} images in {'train' if train else 'others'}",
        )
    if missing := _labels(held_out) - _labels(train):
        raise DataError(
            "A label is on held-out images and on no training image; add some, or remove the label.",
            received=_listed(missing),
        )


def warnings_of_labels(items: Sequence[Item]) -> tuple[str, ...]:
    """Return a warning if some labels have no held-out image."""
    held_out = _labels([item for item in items if item.split not in ("train", THRESHOLDS)])
    if not (missing := _labels(items) - held_out):
        return ()
    count = len(missing)
    labels = "1 label is" if count == 1 else f"{count} labels are"
    return (f"{labels} on no held-out image, so nothing is known of them: {_listed(missing)}",)


def _labels(items: Sequence[Item]) -> set[str]:
    return {label for item in items for label in item.classes}


def _listed(names: set[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _EXAMPLES} more" if len(ordered) > _EXAMPLES else ""
    return ", ".join(ordered[:_EXAMPLES]) + more
