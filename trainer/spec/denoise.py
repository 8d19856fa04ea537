"""Schema of noise removal."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from trainer.spec.checked import Checked, NonNegative, Positive, SettingError

LIMIT = 0.2
"""Largest strength and step size.

Gilboa, Sochen and Zeevi (2002) require strength <= kf / (2 (kb + w)), which is this number with
the thresholds of `trainer.data.denoise`. Four neighbours require a step below 1/4.
"""


class DenoiseSpec(Checked):
    """Noise removal on each decoded image, in training and in the exported model. Off by default."""

    method: Literal["fab"] = "fab"
    """fab is forward-and-backward diffusion (Gilboa, Sochen and Zeevi 2002)."""
    steps: int = Field(3, ge=1, le=10)
    """Diffusion steps, 1 to 10; more steps remove more noise and more detail."""
    strength: NonNegative = 0.1
    """Sharpening of edges, 0 to 0.2; 0 only smooths."""
    step_size: Positive = LIMIT
    """Time step of the diffusion, at most 0.2."""

    @field_validator("strength", "step_size")
    @classmethod
    def _stable(cls, value: float) -> float:
        if value > LIMIT:
            raise SettingError(
                f"The diffusion of data.denoise is unstable above {LIMIT:g}.",
                f"Set strength and step_size to at most {LIMIT:g}.",
                value,
            )
        return value
