"""How fast an epoch goes.

In: the feed and where training stands. Out: seconds, images per second, and the share of the
time that was spent waiting for data.
"""

from __future__ import annotations

import time

from trainer.train.feed import Feed
from trainer.train.progress import Standing

# Long enough that Python costs nothing, short enough that a stop is heard at once.
_CALL_SECONDS = 0.5


class Clock:
    """Times one epoch: how long, how many images, how much of it waiting for data."""

    def __init__(self, feed: Feed | None, standing: Standing) -> None:
        """feed: the input pipeline; None where no batches are read."""
        self.feed = feed
        self.started = time.perf_counter()
        self.images, self.waited = standing.images, self._waited()

    def seconds(self) -> float:
        """Return the seconds since the epoch began here."""
        return time.perf_counter() - self.started

    def rates(self, standing: Standing) -> tuple[float, float]:
        """Return images per second, and the share of time spent waiting, in 0..1."""
        seconds = max(1e-9, self.seconds())
        return (standing.images - self.images) / seconds, (self._waited() - self.waited) / seconds

    def _waited(self) -> float:
        return self.feed.waited_seconds if self.feed is not None else 0.0


def fitting_steps(steps: int, seconds: float) -> int:
    """Return how many steps a call should do after one of `steps` took `seconds`: at most twice as many."""
    return max(1, min(2 * steps, round(steps * _CALL_SECONDS / max(seconds, 1e-6))))
