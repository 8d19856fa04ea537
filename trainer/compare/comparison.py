"""Two runs to a judgement: the same within chance, or which is better and how sure.

In: two `Run`s. Out: a `Comparison`. On the same images the two models are tested as pairs; else, or where
there are no predictions, by their counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from trainer.compare.runs import Run
from trainer.compare.statistics import (
    LEVEL,
    Test,
    bootstrap,
    holm,
    paired_accuracies,
    unpaired_accuracies,
    unpaired_recalls,
)
from trainer.data.labels import all_normalized
from trainer.exits import UsageError
from trainer.report.guessing import are_unequal

Indices = npt.NDArray[np.int64]
_COUNTS = "from the counts alone"


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
    adjusted_p: float
    """Of the accuracies, with all comparisons that were made at once (Holm)."""
    among: int = 1
    """How many these were."""

    @property
    def is_chance(self) -> bool:
        """Whether chance alone could have made the difference of the accuracies."""
        return self.adjusted_p >= LEVEL

    @property
    def recall_gain(self) -> float:
        """Mean recall over the classes, second minus first, where these are of unequal size; else 0."""
        runs = (self.first, self.second)
        values = [run.metrics.get(f"{run.split}/macro_recall") for run in runs]
        if values[0] is None or values[1] is None or not any(map(_has_unequal_classes, runs)):
            return 0.0
        return values[1] - values[0]

    @property
    def is_contested(self) -> bool:
        """Whether the more accurate one has the lower mean recall over unequal classes."""
        return not self.is_chance and self.recall_gain * self.accuracy.difference < 0

    @property
    def is_recall_other(self) -> bool:
        """Whether the mean recall over unequal classes differs by more than chance."""
        test = self._recall_test
        return bool(self.recall_gain and test and self.among * test.p_value < LEVEL)

    @property
    def _recall_test(self) -> Test | None:
        if not self.why_unpaired:
            return self.others.get("macro_recall")
        first, second = _class_counts(self.first), _class_counts(self.second)
        return unpaired_recalls(first, second) if first and second else None

    @property
    def verdict(self) -> str:
        """In a sentence: the same within chance, or which is better and how sure."""
        if not self.why_unpaired and not self.only_first + self.only_second:
            return f"The same: right and wrong on the same {self.first.count:,} images."
        if self.is_chance:
            return f"The same within chance: {self._how}{self._recall_words}."
        better, gain = self._better(self.accuracy.difference).name, _gain(self.accuracy)
        if self.is_contested:
            return f"{better} is right more often by {gain}: {self._how}{self._recall_words}."
        is_alike = not self.why_unpaired or (
            self.why_unpaired == _COUNTS and self.first.count == self.second.count
        )
        if not is_alike:
            return f"{better} scored higher by {gain}, which easier images may explain: {self._how}."
        return f"{better} is better by {gain}: {self._how}."

    def _better(self, difference: float) -> Run:
        return self.second if difference > 0 else self.first

    @property
    def _how(self) -> str:
        p = say_p(self.accuracy.p_value)
        if self.among > 1:
            p += f", {format_p(self.adjusted_p)} as one of {self.among} comparisons"
        if self.why_unpaired:
            return f"Fisher's exact {p}, {self.why_unpaired}"
        return (
            f"{self.only_first + self.only_second:,} images differ, {self.only_first:,} to "
            f"{self.only_second:,} (exact McNemar {p})"
        )

    @property
    def _recall_words(self) -> str:
        """What the mean recall says else than the accuracy; empty if it says nothing else."""
        if not self.is_contested and not self.is_recall_other:
            return ""
        test = self._recall_test
        higher = self._better(self.recall_gain).name
        gain = _gain(test) if test else _share(abs(self.recall_gain))
        words = (
            f"; but the classes are unequal, and the mean of their recalls is higher in {higher}, by {gain}"
        )
        return f"{words}: neither is better in both" if self.is_contested else words


def compare_all(runs: Sequence[Run]) -> list[Comparison]:
    """Return the comparisons of the first of `runs` with each other, which hold all of them to one level.

    Raises UsageError for models of other classes.
    """
    pairs = [compare_runs(runs[0], other) for other in runs[1:]]
    adjusted = holm([pair.accuracy.p_value for pair in pairs])
    return [replace(pair, among=len(pairs), adjusted_p=p) for pair, p in zip(pairs, adjusted, strict=True)]


def compare_runs(first: Run, second: Run) -> Comparison:
    """Return the comparison of two runs. Raises UsageError for models of other classes."""
    _require_same_classes(first, second)
    why = _why_unpaired(first, second)
    if why or first.predictions is None or second.predictions is None:
        test = unpaired_accuracies((first.correct, first.count), (second.correct, second.count))
        return Comparison(first, second, test, {}, np.zeros(0, np.int64), 0, 0, why, test.p_value)
    right = [each.predicted == each.labels for each in (first.predictions, second.predictions)]
    only_first, only_second = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    test = paired_accuracies(only_first, only_second, first.count)
    return Comparison(
        first=first,
        second=second,
        accuracy=test,
        others=bootstrap(first.predictions, second.predictions),
        disagreements=np.flatnonzero(right[0] != right[1]).astype(np.int64),
        only_first=only_first,
        only_second=only_second,
        why_unpaired="",
        adjusted_p=test.p_value,
    )


def _has_unequal_classes(run: Run) -> bool:
    counts = list(_supports(run).values())
    return any(counts) and are_unequal(counts)


def _supports(run: Run) -> dict[str, int]:
    """Return how many images of each class the split has; nothing if the metrics lack it."""
    prefix = f"{run.split}/support/"
    return {
        name.removeprefix(prefix): round(value)
        for name, value in run.metrics.items()
        if name.startswith(prefix)
    }


def _class_counts(run: Run) -> list[tuple[int, int]]:
    """Return (right, all) images of each class that there are images of."""
    return [
        (round(run.metrics[key] * count), count)
        for name, count in _supports(run).items()
        for key in [f"{run.split}/recall/{name}"]
        if count and key in run.metrics
    ]


def _gain(test: Test) -> str:
    """Return the size of a difference that is more than chance, with its interval."""
    low, high = sorted((abs(test.low), abs(test.high)))
    return f"{_share(abs(test.difference))} (95% interval {_share(low)} to {_share(high)})"


def _share(value: float) -> str:
    """Return a share with three decimals, or with two digits that count where these would be zeros."""
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else f"{value:.2g}"


def say_p(value: float) -> str:
    """Return `p = 0.24`, or `p < 0.0001`."""
    text = format_p(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def format_p(value: float) -> str:
    """Return a p-value as 0.24, 0.0312 or < 0.0001: three digits tell on which side of a level it is."""
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"


def _why_unpaired(first: Run, second: Run) -> str:
    if first.predictions is None or second.predictions is None:
        return _COUNTS
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
    names = [all_normalized(each.class_names) for each in (first.predictions, second.predictions)]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        raise UsageError(
            "Only models of the same classes can be compared. "
            f"Received: {', '.join(only)[:200] or 'another order'} in one of {first.uri} and {second.uri}"
        )
