"""Two runs to a judgement: the same within chance, or which is better and how sure.

In: two `Run`s. Out: a `Comparison`. On the same images the two models are tested as pairs; else, or where
there are no predictions, by their counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.compare.runs import Run
from trainer.compare.statistics import Test, bootstrap, paired_accuracies, unpaired_accuracies
from trainer.exits import UsageError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What there is to be said of a second run beside a first one."""

    first: Run
    second: Run
    accuracy: Test
    others: Mapping[str, Test]
    """By the names of `compute_metrics`; only for pairs."""
    disagreements: Indices
    """The images, of those of the split, that one of them alone got right; empty but for pairs."""
    only_first: int
    only_second: int
    """How many of them the one, and the other."""
    why_unpaired: str
    """In words; empty for pairs."""

    @property
    def verdict(self) -> str:
        """In a sentence: the same within chance, or which is better and how sure."""
        test = self.accuracy
        if self.why_unpaired:
            how = f"Fisher's exact {say_p(test.p_value)}, {self.why_unpaired}"
        elif not self.only_first + self.only_second:
            return f"The same: right and wrong on the same {self.first.count:,} images."
        else:
            how = (
                f"{self.only_first + self.only_second:,} images differ, {self.only_first:,} to "
                f"{self.only_second:,} (exact McNemar {say_p(test.p_value)})"
            )
        if test.is_chance:
            return f"The same within chance: {how}."
        better = self.second if test.difference > 0 else self.first
        low, high = sorted((abs(test.low), abs(test.high)))
        gain = f"{_share(abs(test.difference))} (95% interval {_share(low)} to {_share(high)})"
        return f"{better.name} is better by {gain}: {how}."


def compare_runs(first: Run, second: Run) -> Comparison:
    """Return the comparison of two runs. Raises UsageError for models of other classes."""
    _require_same_classes(first, second)
    why = _why_unpaired(first, second)
    if why or first.predictions is None or second.predictions is None:
        test = unpaired_accuracies((first.correct, first.count), (second.correct, second.count))
        return Comparison(first, second, test, {}, np.zeros(0, np.int64), 0, 0, why)
    right = [each.predicted == each.labels for each in (first.predictions, second.predictions)]
    only_first, only_second = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    return Comparison(
        first=first,
        second=second,
        accuracy=paired_accuracies(only_first, only_second, first.count),
        others=bootstrap(first.predictions, second.predictions),
        disagreements=np.flatnonzero(right[0] != right[1]).astype(np.int64),
        only_first=only_first,
        only_second=only_second,
        why_unpaired="",
    )


def _share(value: float) -> str:
    """Return a share with three decimals, or with two digits that count where these would be zeros."""
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else f"{value:.2g}"


def say_p(value: float) -> str:
    """Return `p = 0.24`, or `p < 0.0001`."""
    text = format_p(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def format_p(value: float) -> str:
    """Return a p-value with two digits that count: 0.24, 0.0031, or < 0.0001."""
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _why_unpaired(first: Run, second: Run) -> str:
    if first.predictions is None or second.predictions is None:
        return "from the counts alone"
    if not _is_same(first, second):
        return "on different data, so not as pairs"
    same = first.predictions.names == second.predictions.names and np.array_equal(
        first.predictions.labels, second.predictions.labels
    )
    return "" if same and first.split == second.split else "on other images, so not as pairs"


def _is_same(first: Run, second: Run) -> bool:
    """Return whether the images that both are judged by are the same, or else all of them."""
    both = (first, second)
    splits = [(run.dataset.get("splits", {}).get(run.split) or {}).get("digest") for run in both]
    if all(splits):
        return bool(splits[0] == splits[1])
    return bool(first.dataset.get("digest") == second.dataset.get("digest"))


def _require_same_classes(first: Run, second: Run) -> None:
    if first.predictions is None or second.predictions is None:
        return
    names = [each.class_names for each in (first.predictions, second.predictions)]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        raise UsageError(
            "Only models of the same classes can be compared. "
            f"Received: {', '.join(only)[:200] or 'another order'} in one of {first.uri} and {second.uri}"
        )
