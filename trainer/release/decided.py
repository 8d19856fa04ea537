"""A decision on one challenger, with its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.compare.statistics import Test

ROUNDING = 1e-9
"""Of a difference of two shares, which may be the limit itself."""


@dataclass(frozen=True)
class Decision:
    """On one challenger."""

    is_released: bool
    reason: str
    """In a sentence."""
    challenger_accuracy: float
    champion_accuracy: float
    only_champion: int
    only_challenger: int
    """Images that one of them alone gets right."""
    count: int
    """All images."""
    accuracy: Test
    """Challenger minus champion."""
    worst_class: str
    worst_class_change: float
    """The largest loss of recall of any class, as a negative number; 0 if none loses."""
