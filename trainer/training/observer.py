"""Progress callbacks of the training loop, implemented by a console, a log or a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class CallReport:
    """Progress after one call of the compiled steps."""

    epoch: int
    """Counted from 1."""
    epochs: int
    step: int
    """Steps done in all epochs."""
    total_steps: int
    loss: float
    """Mean of the epoch so far, on augmented images."""
    accuracy: float
    images_per_second: float
    """Mean of the epoch so far."""
    wait_share: float
    """Share of the epoch's time spent waiting for data, in 0..1."""


class Observer(Protocol):
    """Receives progress; its methods must return fast and never raise."""

    def on_call(self, report: CallReport) -> None:
        """Called after each call of the compiled steps."""

    def on_epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Called after each epoch, with the row that is written to history.jsonl and its timings."""

    def on_message(self, message: str) -> None:
        """Called with a sentence for the user."""
