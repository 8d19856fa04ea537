"""What training tells while it runs.

In: nothing. Out: the `Observer` protocol that a console, a log or a test implements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class CallReport:
    """Where training stands after one call of the compiled steps."""

    epoch: int
    """Counted from 1."""
    epochs: int
    step: int
    """Steps done in all epochs."""
    total_steps: int
    loss: float
    """Mean since the epoch began, on augmented images."""
    accuracy: float
    images_per_second: float
    """Over the epoch so far."""
    wait_share: float
    """The share of the epoch's time, in 0..1, spent waiting for data."""


class Observer(Protocol):
    """Hears of progress; must return fast and never raise."""

    def on_call(self, report: CallReport) -> None:
        """Hear of each call of the compiled steps."""

    def on_epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Hear of each epoch, with the row that goes to history.jsonl."""

    def on_message(self, message: str) -> None:
        """Hear a sentence that a person should read."""
