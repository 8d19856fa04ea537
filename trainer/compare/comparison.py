"""Statistical comparison of runs.

Two models are tested as pairs if their predictions are for the same images. Otherwise, or without
predictions, they are tested by their counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from trainer.compare.label_comparison import compare_labels
from trainer.compare.pair import COUNTS, Comparison
from trainer.compare.runs import Run
from trainer.data.labels import all_normalized
from trainer.errors import UsageError
from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.evaluate.metrics import Predictions
from trainer.evaluate.significance import bootstrap, holm, paired_accuracies, unpaired_accuracies


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
            "A run with one label per image can't be compared with one with several.",
            "Compare runs with the same data.labels.",
            received=f"{first.uri} and {second.uri}",
        )
    names = [
        all_normalized(predictions.class_names) for predictions in (first.predictions, second.predictions)
    ]
    if names[0] != names[1]:
        only = sorted(set(names[0]) ^ set(names[1]))
        raise UsageError(
            "Models of different classes can't be compared.",
            "Compare runs of the same classes.",
            received=f"{', '.join(only)[:200] or 'another order'} in one of {first.uri} and {second.uri}",
        )
