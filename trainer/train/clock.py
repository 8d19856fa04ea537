"""Throughput of an epoch: seconds, images per second, and the share of time spent waiting for data."""

from __future__ import annotations

import time

from trainer.train.prefetch import BatchPrefetcher
from trainer.train.state import TrainState

# Long enough to hide the overhead of Python, short enough to react to a stop at once.
_CALL_SECONDS = 0.5


class Clock:
    """Timer for one epoch: duration, images, and time spent waiting for data."""

    def __init__(self, feed: BatchPrefetcher | None, standing: TrainState) -> None:
        """feed: the input pipeline, or None if no batches are read."""
        self.feed = feed
        self.started = time.perf_counter()
        self.images, self.waited = standing.images, self._waited()

    def seconds(self) -> float:
        """Return the seconds since this object was created."""
        return time.perf_counter() - self.started

    def rates(self, standing: TrainState) -> tuple[float, float]:
        """Return images per second, and the share of time spent waiting for data, in 0..1."""
        seconds = max(1e-9, self.seconds())
        return (standing.images - self.images) / seconds, (self._waited() - self.waited) / seconds

    def _waited(self) -> float:
        return self.feed.waited_seconds if self.feed is not None else 0.0


def fitting_steps(steps: int, seconds: float) -> int:
    """Return the number of steps for the next call, at most twice `steps`, which took `seconds`."""
    return max(1, min(2 * steps, round(steps * _CALL_SECONDS / max(seconds, 1e-6))))
