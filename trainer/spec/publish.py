"""Schema of the publication settings: release and retention."""

from __future__ import annotations

from pydantic import Field

from trainer.spec.checked import Checked, Count, Fraction, NonNegative


class PublishSpec(Checked):
    """Release of a finished run as champion, and retention of older runs."""

    skip_unchanged: bool = False
    """Skip the run when neither its data nor its spec has changed since the newest finished run."""
    release: bool = False
    """Challenge the champion once the run is finished."""
    test_data: str | None = Field(None, min_length=1)
    """Images that decide a release; by default the held-out images of the run. If it is the source of the
    run's own data, the test images in it decide, or else the validation images."""
    min_gain: Fraction = 0.0
    """Minimum gain in accuracy of a challenger, in addition to statistical significance."""
    max_class_loss: Fraction = 0.05
    """Maximum loss of recall of any class."""
    keep_runs: Count | None = None
    """Newest finished runs to keep, besides the champion and the previous champion; null keeps all."""
    usd_per_hour: NonNegative | None = None
    """Price of all machines per hour, for comparisons of runs; `trainer submit` sets the list price."""
