"""Decision on one challenger, with its metrics."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.evaluate.significance import Test

ROUNDING = 1e-9
"""Tolerance for rounding errors of a difference of two shares that may equal the limit exactly."""


@dataclass(frozen=True)
class Decision:
    """Decision on one challenger."""

    is_released: bool
    reason: str
    """Reason as a sentence."""
    challenger_accuracy: float
    champion_accuracy: float
    only_champion: int
    only_challenger: int
    """Number of images that only one of the models classifies correctly."""
    count: int
    """Number of images."""
    accuracy: Test
    """Challenger minus champion."""
    worst_class: str
    worst_class_change: float
    """Largest loss of recall of any class, as a negative number; 0 if no class loses."""
