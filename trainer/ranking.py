"""Average precision of many labels, with bootstrap resamples and a permutation test.

Inputs are truth and scores, [images, labels]. Equal scores count as one step, as in scikit-learn's
`average_precision_score`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PERMUTATIONS, _FEWEST_PERMUTATIONS = 999, 199
_MOST_CELLS = 200_000_000
"""Maximum of images x labels x permutations; larger data have fewer permutations."""
_AT_A_TIME = 4_000_000
"""Maximum number of resampled cells in memory at once."""


@dataclass(frozen=True)
class _Order:
    """The images sorted by the score of one label, highest first."""

    rows: Ints
    ends: Ints
    """Last index of each group of equal scores."""

    def precision(self, hits: npt.NDArray[Any], counts: npt.NDArray[Any]) -> Floats:
        """Return the average precision of each row; NaN for a row without a hit.

        hits, counts: [R, N] in the order of the images: how often each image counts as a hit, and in total.
        """
        found = np.cumsum(hits[:, self.rows], axis=1, dtype=np.float64)[:, self.ends]
        seen = np.cumsum(counts[:, self.rows], axis=1, dtype=np.float64)[:, self.ends]
        gained = np.diff(found, axis=1, prepend=0.0)
        total = found[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((gained * found / np.maximum(seen, 1)).sum(axis=1) / total)


class Ranking:
    """The scores of some images, sorted once; truth: bool [N, C], scores: float [N, C]."""

    def __init__(self, truth: Bools, scores: Floats) -> None:
        self.truth = truth
        self._orders = [_order_of(scores[:, label]) for label in range(scores.shape[1])]

    def average_precisions(self) -> Floats:
        """Return the average precision of each label, [C]; NaN for a label without images."""
        ones = np.ones((1, len(self.truth)))
        return np.array(
            [
                float(order.precision(self.truth[None, :, label], ones)[0])
                for label, order in enumerate(self._orders)
            ]
        )

    def mean(self) -> float:
        """Return the mean average precision over the labels with images; NaN if there are none."""
        return float(_means(self.average_precisions()[None])[0])

    def resampled_means(self, counts: Ints) -> Floats:
        """Return the mean average precision of each resample, [R].

        counts: int64 [R, N], how often each image was drawn.
        """
        found = [
            order.precision(counts * self.truth[:, label], counts) for label, order in enumerate(self._orders)
        ]
        return _means(np.stack(found, axis=1))

    def p_of_chance(self, seed: int = 0) -> float:
        """Return the p-value of a permutation test of the scores against independence from the labels.

        The label sets are permuted over the images 999 times, fewer for large data but at least 199 times.
        The p-value is the share of permutations with at least the observed mean average precision, including
        the observed data (Phipson and Smyth 2010); it is 1 for a constant score.
        """
        random, observed = np.random.default_rng(seed), self.mean()
        images, labels = self.truth.shape
        fitting = _MOST_CELLS // max(1, images * labels)
        count = max(_FEWEST_PERMUTATIONS, min(_PERMUTATIONS, fitting))
        as_high = sum(
            int(np.sum(self._permuted_means(permutations) >= observed - 1e-12))
            for permutations in _permutations(random, count, images)
        )
        return float((as_high + 1) / (count + 1))

    def _permuted_means(self, permutations: Ints) -> Floats:
        ones = np.ones((1, len(self.truth)))
        found = [
            order.precision(self.truth[:, label][permutations], ones)
            for label, order in enumerate(self._orders)
        ]
        return _means(np.stack(found, axis=1))


def _order_of(scores: Floats) -> _Order:
    rows = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[rows]) != 0, True))
    return _Order(rows.astype(np.int64), ends.astype(np.int64))


def _means(found: Floats) -> Floats:
    """Return the mean of each row, [R, C], over the values that are not NaN; NaN if there are none."""
    is_known = ~np.isnan(found)
    sums, counts = np.where(is_known, found, 0.0).sum(axis=1), is_known.sum(axis=1)
    return np.asarray(np.divide(sums, counts, out=np.full(len(found), np.nan), where=counts > 0))


def _permutations(random: np.random.Generator, count: int, images: int) -> Iterator[Ints]:
    step = max(1, _AT_A_TIME // max(1, images))
    for start in range(0, count, step):
        places = np.broadcast_to(np.arange(images), (min(step, count - start), images))
        yield random.permuted(places, axis=1)


def draws(random: np.random.Generator, count: int, images: int, labels: int) -> Iterator[Ints]:
    """Yield `count` bootstrap resamples in chunks, int64 [R, images]: how often each image was drawn."""
    step = max(1, _AT_A_TIME // max(images, labels))
    for start in range(0, count, step):
        many = min(step, count - start)
        rows = random.integers(0, images, (many, images)) + np.arange(many)[:, None] * images
        yield np.bincount(rows.ravel(), minlength=many * images).reshape(many, images)
