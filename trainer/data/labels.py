"""Unicode normalization of class names.

Class names from folders, tables, records and models are converted to the composed form (NFC). macOS writes
"é" as two characters, other systems as one; models of earlier versions may contain either form.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

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
