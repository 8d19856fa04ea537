"""Rows of history.jsonl to curves.

In: one mapping an epoch, some of them without held-out values. Out: the values there are,
the best epoch, and whether the held-out curve was still rising at its end.
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
    """[n], from 1."""
    values: Floats
    """[n], finite."""


def read_series(history: History, key: str) -> Series:
    """Return the finite values of `key`, epoch by epoch; rows without one are left out."""
    points = [
        (float(epoch), float(value))
        for epoch, value in ((row.get("epoch"), row.get(key)) for row in history)
        if isinstance(epoch, (int, float)) and isinstance(value, (int, float)) and math.isfinite(value)
    ]
    pairs = np.array(points, dtype=np.float64).reshape(-1, 2)
    return Series(pairs[:, 0], pairs[:, 1])


def find_best_epoch(history: History, held_out: str, measure: str) -> int | None:
    """Return the epoch, from 1, with the best held-out `measure`; None if none was validated.

    measure: 'loss', the lowest being best, or another one, the highest; of equals the first.
    """
    series = read_series(history, f"{held_out}/{measure}")
    if not len(series.values):
        return None
    index = np.argmin(series.values) if measure == "loss" else np.argmax(series.values)
    return int(series.epochs[index])


def is_rising(history: History, held_out: str, measure: str = "accuracy") -> bool:
    """Return whether the held-out `measure` was still rising when training ended.

    It was if a line through the last fifth of the points (four at least) gains 0.01 or more
    there, and no line as steep would come of chance more often than once in 20 times (t-test
    of the slope). With two to four points in all, the last must be the highest and 0.02
    above the first. A learning rate that has run out ends a rise for good: below a tenth of
    its peak, the curve climbs because the rate falls, and more epochs at its end bring nothing.
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
    from scipy.stats import linregress  # takes a second to load, and short trainings do without

    last = max(4, math.ceil(count / 5))
    epochs, values = series.epochs[-last:], series.values[-last:]
    line = linregress(epochs, values, alternative="greater")
    return bool(line.slope * (epochs[-1] - epochs[0]) >= _LEAST_RISE and line.pvalue < _CHANCE)
