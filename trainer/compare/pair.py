"""Result of comparing two runs: tests and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.compare.runs import Run
from trainer.evaluate.significance import LEVEL, Test, are_unequal, unpaired_recalls

Indices = npt.NDArray[np.int64]
COUNTS = "from the counts alone"
BOOTSTRAP = "a paired bootstrap with 1,000 resamples"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Comparison of a second run with a first one."""

    first: Run
    second: Run
    accuracy: Test
    others: Mapping[str, Test]
    """By names of `compute_metrics`; only for pairs."""
    disagreements: Indices
    """Indices of the images in the split that only one model predicts correctly; empty unless paired."""
    only_first: int
    only_second: int
    """Number of images that only the first, and only the second, model predicts correctly."""
    why_unpaired: str
    """Why the models are not tested as pairs; empty for pairs."""
    adjusted_p: float
    """p-value of the accuracies, adjusted for all comparisons that were made at once (Holm)."""
    among: int = 1
    """Number of comparisons that were made at once."""

    @property
    def is_chance(self) -> bool:
        """Whether chance alone explains the difference in accuracy."""
        return self.adjusted_p >= LEVEL

    @property
    def recall_gain(self) -> float:
        """Mean recall over the classes, second minus first, if classes are of unequal size; else 0."""
        runs = (self.first, self.second)
        values = [run.metrics.get(f"{run.split}/macro_recall") for run in runs]
        if values[0] is None or values[1] is None or not any(map(_has_unequal_classes, runs)):
            return 0.0
        return values[1] - values[0]

    @property
    def measure(self) -> str:
        """Metric that is tested by `accuracy`, as a name of `compute_metrics`."""
        return "accuracy"

    @property
    def method(self) -> str:
        """Description of the test of `measure`, for a page."""
        return "accuracy by McNemar's exact test, which decides if the interval disagrees"

    @property
    def others_method(self) -> str:
        """Description of the tests of `others`, for a page."""
        return f"the others by {BOOTSTRAP}"

    @property
    def is_contested(self) -> bool:
        """Whether the more accurate run has the lower mean recall over unequal classes."""
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
        """One sentence: no significant difference, or which run is better and how sure that is."""
        if not self.why_unpaired and not self.only_first + self.only_second:
            return f"No difference: both are right and wrong on the same {self.first.count:,} images."
        if self.is_chance:
            return f"No significant difference: {self._test_text}{self._recall_text}."
        better, gain = self._better(self.accuracy.difference).name, gain_text(self.accuracy)
        if self.is_contested:
            return f"{better} is more accurate by {gain}: {self._test_text}{self._recall_text}."
        is_alike = not self.why_unpaired or (
            self.why_unpaired == COUNTS and self.first.count == self.second.count
        )
        if not is_alike:
            return f"{better} scored higher by {gain}, which easier images may explain: {self._test_text}."
        return f"{better} is better by {gain}: {self._test_text}."

    def _better(self, difference: float) -> Run:
        return self.second if difference > 0 else self.first

    @property
    def _test_text(self) -> str:
        if self.why_unpaired:
            return f"Fisher's exact {self._p_text}, {self.why_unpaired}"
        return (
            f"{self.only_first + self.only_second:,} images differ, {self.only_first:,} to "
            f"{self.only_second:,} (exact McNemar {self._p_text})"
        )

    @property
    def _p_text(self) -> str:
        """The p-value, and the adjusted one if there are several comparisons."""
        text = p_text(self.accuracy.p_value)
        if self.among > 1:
            text += f", {format_p(self.adjusted_p)} adjusted for {self.among} comparisons"
        return text

    @property
    def _recall_text(self) -> str:
        """Text on the mean recall if it contradicts the accuracy; else empty."""
        if not self.is_contested and not self.is_recall_other:
            return ""
        test = self._recall_test
        higher = self._better(self.recall_gain).name
        gain = gain_text(test) if test else _share(abs(self.recall_gain))
        text = f"; but the classes are unequal, and the mean recall of {higher} is higher by {gain}"
        return f"{text}: neither is better in both" if self.is_contested else text


def _has_unequal_classes(run: Run) -> bool:
    counts = list(_supports(run).values())
    return any(counts) and are_unequal(counts)


def _supports(run: Run) -> dict[str, int]:
    """Return the number of images of each class in the split; empty if the metrics lack it."""
    prefix = f"{run.split}/support/"
    return {
        name.removeprefix(prefix): round(value)
        for name, value in run.metrics.items()
        if name.startswith(prefix)
    }


def _class_counts(run: Run) -> list[tuple[int, int]]:
    """Return (correct, total) images of each class that has images."""
    return [
        (round(run.metrics[key] * count), count)
        for name, count in _supports(run).items()
        for key in [f"{run.split}/recall/{name}"]
        if count and key in run.metrics
    ]


def gain_text(test: Test) -> str:
    """Return the size of a significant difference, with its 95% interval."""
    low, high = sorted((abs(test.low), abs(test.high)))
    return f"{_share(abs(test.difference))} (95% interval {_share(low)} to {_share(high)})"


def _share(value: float) -> str:
    """Return a share with three decimals, or with two significant digits if these would be zeros."""
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else f"{value:.2g}"


def p_text(value: float) -> str:
    """Return `p = 0.24` or `p < 0.0001`."""
    text = format_p(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def format_p(value: float) -> str:
    """Return a p-value as 0.24, 0.0312 or < 0.0001.

    Below 0.1, three significant digits show on which side of a significance level it is.
    """
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"
