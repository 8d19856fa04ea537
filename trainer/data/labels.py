"""Class names as text: one spelling for what looks the same.

In: class names as folders, tables, records and models have them. Out: names in Unicode's composed form (NFC).
A Mac writes "é" as two characters and others as one; models of earlier versions may hold either.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")


def normalized(label: str) -> str:
    """Return `label` in NFC, as all labels are from reading on."""
    return unicodedata.normalize("NFC", label)


def all_normalized(labels: Iterable[str]) -> tuple[str, ...]:
    """Return `labels` in NFC, in their order."""
    return tuple(map(normalized, labels))


def numbers_of(class_names: Sequence[str]) -> dict[str, int]:
    """Return the index of each class by its normalized name; of two that look the same, the first one's."""
    return {normalized(name): number for number, name in reversed(list(enumerate(class_names)))}


def by_normalized(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return `values` by the normalized names of their classes."""
    return {normalized(name): value for name, value in values.items()}
