"""What becomes of a run once it is finished, as frozen, validated values.

In: plain mappings. Out: a `PublishSpec`.
"""

from __future__ import annotations

from pydantic import Field

from trainer.spec.checked import Checked, Count, Fraction, NonNegative


class PublishSpec(Checked):
    """Whether a finished run may become the champion, and what is kept of the others."""

    skip_unchanged: bool = False
    """Whether a run whose data and spec are those of the newest finished run is left undone."""
    release: bool = False
    """Whether the run challenges the champion once it is finished."""
    test_data: str | None = Field(None, min_length=1)
    """The images that decide; without any, the held-out ones of the run's own data.

    Where it is the place of the run's own data, the test images in it, else the validation images."""
    min_gain: Fraction = 0.0
    """What a challenger has to gain in accuracy, besides that it is more than chance."""
    max_class_loss: Fraction = 0.05
    """What a class may lose of its recall at most, for all that the others gain."""
    keep_runs: Count | None = None
    """How many of the newest finished runs stay, besides the champion and the one before it; None is all."""
    usd_per_hour: NonNegative | None = None
    """What all its machines cost, for comparisons of runs; `trainer submit` sets the list price."""
