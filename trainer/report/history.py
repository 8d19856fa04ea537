"""Training curves from the rows of history.jsonl.

A row is a mapping for one epoch; some rows have no held-out values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
History = Sequence[Mapping[str, object]]

_LEAST_RISE = 0.01
_CHANCE = 0.05
_ANNEALED = 0.1


@dataclass(frozen=True, eq=False)
class Series:
    """One curve."""

    epochs: Floats
    """[n], counted from 1."""
    values: Floats
    """[n], finite."""


def read_series(history: History, key: str) -> Series:
    """Return the finite values of `key` by epoch; rows without one are omitted."""
    points = [
        (float(epoch), float(value))
        for epoch, value in ((row.get("epoch"), row.get(key)) for row in history)
        if isinstance(epoch, (int, float)) and isinstance(value, (int, float)) and math.isfinite(value)
    ]
    pairs = np.array(points, dtype=np.float64).reshape(-1, 2)
    return Series(pairs[:, 0], pairs[:, 1])


def find_best_epoch(history: History, held_out: str, measure: str) -> int | None:
    """Return the epoch, from 1, with the best held-out `measure`; None if none was validated.

    measure: the lowest 'loss' is best, the highest of any other. The first epoch of a tie is returned.
    """
    series = read_series(history, f"{held_out}/{measure}")
    if not len(series.values):
        return None
    index = np.argmin(series.values) if measure == "loss" else np.argmax(series.values)
    return int(series.epochs[index])


def is_rising(history: History, held_out: str, measure: str = "accuracy") -> bool:
    """Return whether the held-out `measure` was still rising when training ended.

    A line is fitted to the last fifth of the points (at least four). The measure is rising if the line gains
    at least 0.01 over them with a one-sided p-value below 0.05 (t-test of the slope). With two to four points
    in total, the last one must be the highest and more than 0.02 above the first. Below a tenth of the peak
    learning rate, the measure does not count as rising: it then rises because the rate falls, and more epochs
    at the final rate gain nothing.
    """
    rates = read_series(history, "learning_rate").values
    if len(rates) and rates[-1] < _ANNEALED * rates.max():
        return False
    series = read_series(history, f"{held_out}/{measure}")
    count = len(series.values)
    if count < 5:
        return bool(
            count > 1
            and series.values[-1] == series.values.max()
            and series.values[-1] - series.values[0] > 2 * _LEAST_RISE
        )
    from scipy.stats import linregress  # slow import (1 s), not needed for short runs

    last = max(4, math.ceil(count / 5))
    epochs, values = series.epochs[-last:], series.values[-last:]
    line = linregress(epochs, values, alternative="greater")
    return bool(line.slope * (epochs[-1] - epochs[0]) >= _LEAST_RISE and line.pvalue < _CHANCE)
