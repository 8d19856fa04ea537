"""Throughput of an epoch: seconds, images per second, and the share of time spent waiting for data."""

from __future__ import annotations

import time

from trainer.training.prefetch import BatchPrefetcher
from trainer.training.state import TrainState

# Long enough to hide the overhead of Python, short enough to react to a stop at once.
_CALL_SECONDS = 0.5


class Clock:
    """Timer for one epoch: duration, images, and time spent waiting for data."""

    def __init__(self, prefetcher: BatchPrefetcher | None, state: TrainState) -> None:
        """prefetcher: the input pipeline, or None if no batches are read."""
        self.prefetcher = prefetcher
        self.started = time.perf_counter()
        self.images, self.waited = state.images, self._waited()

    def seconds(self) -> float:
        """Return the seconds since this object was created."""
        return time.perf_counter() - self.started

    def rates(self, state: TrainState) -> tuple[float, float]:
        """Return images per second, and the share of time spent waiting for data, in 0..1."""
        seconds = max(1e-9, self.seconds())
        return (state.images - self.images) / seconds, (self._waited() - self.waited) / seconds

    def _waited(self) -> float:
        return self.prefetcher.waited_seconds if self.prefetcher is not None else 0.0


def fitting_steps(steps: int, seconds: float) -> int:
    """Return the number of steps for the next call, at most twice `steps`, which took `seconds`."""
    return max(1, min(2 * steps, round(steps * _CALL_SECONDS / max(seconds, 1e-6))))
