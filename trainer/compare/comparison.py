"""Statistical comparison of runs.

Two models are tested as pairs if their predictions are for the same images. Otherwise, or without
predictions, they are tested by their counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from trainer.compare.pair import BOOTSTRAP, COUNTS, Comparison, gain_text
from trainer.compare.runs import Run
from trainer.data.items import all_normalized
from trainer.errors import UsageError
from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.evaluate.metrics import Predictions
from trainer.evaluate.significance import (
    RESAMPLES,
    Test,
    bootstrap,
    holm,
    paired_accuracies,
    test_of,
    unpaired_accuracies,
)
from trainer.ranking import Ranking, draws

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MEASURE = "mean_average_precision"


@dataclass(frozen=True, eq=False)
class LabelComparison(Comparison):
    """Comparison whose `accuracy` is the test of the mean average precision."""

    @property
    def recall_gain(self) -> float:
        """Always 0: the mean over labels does not favour frequent ones."""
        return 0.0

    @property
    def measure(self) -> str:
        """Metric that is tested by `accuracy`."""
        return MEASURE

    @property
    def method(self) -> str:
        """Description of the test of `measure`, for a page."""
        return f"mean average precision by {BOOTSTRAP}"

    @property
    def others_method(self) -> str:
        """Description of the tests of `others`, for a page."""
        return f"subset_accuracy by McNemar's exact test, the others by {BOOTSTRAP}"

    @property
    def verdict(self) -> str:
        """One sentence: no significant difference, or which run is better and how sure that is."""
        if self.is_chance:
            return f"No significant difference: {self._test_text}."
        better, gain = self._better(self.accuracy.difference).name, gain_text(self.accuracy)
        return f"{better} is better by {gain} of mean average precision: {self._test_text}."

    @property
    def _test_text(self) -> str:
        return (
            f"mean average precision {self.accuracy.difference:+.3f} (paired bootstrap {self._p_text}); "
            f"{self.only_first:,} images have all labels right only in the first run, "
            f"{self.only_second:,} only in the second"
        )


def compare_labels(
    first: Run, second: Run, before: MultiLabelPredictions, after: MultiLabelPredictions
) -> LabelComparison:
    """Return the comparison of two runs by their predictions for the same images."""
    only_first = int(np.sum(before.right & ~after.right))
    only_second = int(np.sum(after.right & ~before.right))
    tests = bootstrap_labels(before, after)
    others = {name: test for name, test in tests.items() if name != MEASURE}
    others["subset_accuracy"] = paired_accuracies(only_first, only_second, len(before.names))
    return LabelComparison(
        first=first,
        second=second,
        accuracy=tests[MEASURE],
        others=others,
        disagreements=np.flatnonzero(before.right != after.right).astype(np.int64),
        only_first=only_first,
        only_second=only_second,
        why_unpaired="",
        adjusted_p=tests[MEASURE].p_value,
    )


def bootstrap_labels(
    first: MultiLabelPredictions, second: MultiLabelPredictions, seed: int = 0
) -> dict[str, Test]:
    """Return tests of metrics, for predictions for the same images in the same order.

    The method is that of `trainer.evaluate.significance.bootstrap`. Keys are names of `compute_metrics`. A
    resample without any label counts as no difference.
    """
    random, (images, labels) = np.random.default_rng(seed), first.truth.shape
    measures = [_measure(predictions) for predictions in (first, second)]

    def differences(counts: Ints) -> dict[str, Floats]:
        before, after = (measure(counts) for measure in measures)
        return {name: np.nan_to_num(after[name] - before[name]) for name in before}

    whole = differences(np.ones((1, images), np.int64))
    resamples = [differences(counts) for counts in draws(random, RESAMPLES, images, labels)]
    return {
        name: test_of(float(value[0]), np.concatenate([resample[name] for resample in resamples]))
        for name, value in whole.items()
    }


def _measure(predictions: MultiLabelPredictions) -> Callable[[Ints], dict[str, Floats]]:
    """Return a function from resamples, int64 [R, N] (draws of each image), to metrics, each [R]."""
    truth, predicted = predictions.truth, predictions.predicted
    ranking = Ranking(truth, predictions.probabilities)
    hits, wrong = truth & predicted, (truth != predicted).mean(axis=1)

    def measure(counts: Ints) -> dict[str, Floats]:
        hit_counts, true_counts, predicted_counts = (
            counts @ flags.astype(np.int64) for flags in (hits, truth, predicted)
        )
        f1 = _divided(2 * hit_counts, true_counts + predicted_counts)
        has_images = true_counts > 0
        micro = _divided(2 * hit_counts.sum(axis=1), (true_counts + predicted_counts).sum(axis=1))
        return {
            MEASURE: ranking.resampled_means(counts),
            "macro_f1": _divided((f1 * has_images).sum(axis=1), has_images.sum(axis=1)),
            "micro_f1": micro,
            "hamming_loss": counts @ wrong / counts.sum(axis=1),
        }

    return measure


def _divided(above: npt.NDArray[np.number], below: npt.NDArray[np.number]) -> Floats:
    return np.asarray(np.divide(above, below, out=np.zeros(below.shape), where=below > 0))


def compare_all(runs: Sequence[Run]) -> list[Comparison]:
    """Return the comparisons of the first of `runs` with each other one, adjusted for multiple testing.

    Raises UsageError for models of different classes, or if only one of them has several labels per image.
    """
    pairs = [compare_runs(runs[0], other) for other in runs[1:]]
    adjusted = holm([pair.accuracy.p_value for pair in pairs])
    return [replace(pair, among=len(pairs), adjusted_p=p) for pair, p in zip(pairs, adjusted, strict=True)]


def compare_runs(first: Run, second: Run) -> Comparison:
    """Return the comparison of two runs. Raises UsageError as `compare_all` does."""
    _require_same_classes(first, second)
    why_unpaired = _why_unpaired(first, second)
    if why_unpaired or first.predictions is None or second.predictions is None:
        test = unpaired_accuracies((first.correct, first.count), (second.correct, second.count))
        return Comparison(first, second, test, {}, np.zeros(0, np.int64), 0, 0, why_unpaired, test.p_value)
    before, after = first.predictions, second.predictions
    if isinstance(before, MultiLabelPredictions) and isinstance(after, MultiLabelPredictions):
        return compare_labels(first, second, before, after)
    right = before.right, after.right
    only_first, only_second = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    test = paired_accuracies(only_first, only_second, first.count)
    return Comparison(
        first=first,
        second=second,
        accuracy=test,
        others=bootstrap(cast(Predictions, before), cast(Predictions, after)),
        disagreements=np.flatnonzero(right[0] != right[1]).astype(np.int64),
        only_first=only_first,
        only_second=only_second,
        why_unpaired="",
        adjusted_p=test.p_value,
    )


def _why_unpaired(first: Run, second: Run) -> str:
    if first.predictions is None or second.predictions is None:
        return COUNTS
    if not _has_same_data(first, second):
        return "unpaired, because the data differ"
    same = first.predictions.names == second.predictions.names and np.array_equal(
        first.predictions.labels, second.predictions.labels
    )
    return "" if same and first.split == second.split else "unpaired, because the images differ"


def _has_same_data(first: Run, second: Run) -> bool:
    """Return whether the splits that the runs are judged by are the same, or else the whole data sets."""
    both = (first, second)
    splits = [(run.dataset.get("splits", {}).get(run.split) or {}).get("digest") for run in both]
    if all(splits):
        return bool(splits[0] == splits[1])
    return bool(first.dataset.get("digest") == second.dataset.get("digest"))


def _require_same_classes(first: Run, second: Run) -> None:
    if first.predictions is None or second.predictions is None:
        return
    if isinstance(first.predictions, Predictions) != isinstance(second.predictions, Predictions):
        raise UsageError(
            "A run with one label per image cannot be compared with one with several.",
            "Compare runs with the same data.labels.",
            received=f"{first.uri} and {second.uri}",
        )
    names = [
        all_normalized(predictions.class_names) for predictions in (first.predictions, second.predictions)
    ]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        raise UsageError(
            "Models of different classes cannot be compared.",
            "Compare runs of the same classes.",
            received=f"{', '.join(only)[:200] or 'another order'} in one of {first.uri} and {second.uri}",
        )
