"""Result of a training, for the report and the metrics."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.train.history import Row


@dataclass(frozen=True)
class TrainResult:
    """History, best epoch and duration of a training."""

    history: list[Row]
    """One row per epoch, including timings."""
    timings: list[Row]
    """One row per epoch: seconds, images per second, and the share of time spent waiting for data."""
    best_epoch: int
    """From 1; 0 if no epoch was validated."""
    seconds: float
    """Training time of all attempts, without evaluation after the last epoch."""
    ended: str
    """Why training ended early, in words; empty if it did not."""
