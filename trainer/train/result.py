"""What training leaves in memory.

In: nothing. Out: `TrainResult`, for the report and the metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.train.history import Row


@dataclass(frozen=True)
class TrainResult:
    """What training came to."""

    history: list[Row]
    """One row an epoch, times included."""
    timings: list[Row]
    """One row an epoch: seconds, images a second, the share of them spent waiting for data."""
    best_epoch: int
    """From 1; 0 if no epoch was validated."""
    seconds: float
    """Training time of all attempts, without evaluation after the last epoch."""
    ended: str
    """Why it ended early, in words; empty if it didn't."""
