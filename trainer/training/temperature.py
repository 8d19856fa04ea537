"""Temperature scaling of probabilities with one label per image.

The logits are divided by one number, which changes the confidence but not the predicted class (Guo et al.,
"On Calibration of Modern Neural Networks", ICML 2017).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST_IMAGES = 50
"""Number of images below which the temperature is 1."""
_LARGEST = 20.0
_DIGITS = 4
"""Significant digits of a temperature, which float32 represents too."""


def fit_temperature(probabilities: Floats, labels: NDArray[np.integer]) -> float:
    """Return the temperature with the lowest log loss, in 1/20 .. 20.

    probabilities: [images, classes]; rows sum to 1. labels: [images]. They must be of images that the model
    was not fitted to. The temperature is 1 for fewer than FEWEST_IMAGES images, and for
    images that are all classified correctly: the loss then falls with the temperature without a limit.
    """
    if len(labels) < FEWEST_IMAGES or (probabilities.argmax(axis=1) == labels).all():
        return 1.0
    from scipy.optimize import minimize_scalar  # slow import, needed only here

    logits = _logarithm(probabilities)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - scaled[rows, labels]))

    bound = np.log(_LARGEST)
    best = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-5})
    return float(f"{np.exp(best.x):.{_DIGITS}g}") if best.fun < loss(0.0) else 1.0


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return the softmax of the logits of `probabilities`, [images, classes], divided by `temperature`."""
    if temperature == 1.0:
        return probabilities
    scaled = _logarithm(probabilities) / temperature
    return np.asarray(np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)))


def _logarithm(probabilities: Floats) -> Floats:
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
