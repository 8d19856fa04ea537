"""Decision thresholds, one per label.

They should be chosen on images that no weight was fitted to. They must not be chosen on the held-out images
of a run, whose metrics would be biased by the choice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.data.split import FEWEST_FOR_THRESHOLD

Floats = npt.NDArray[np.float64]

USUAL = 0.5


def choose_thresholds(truth: npt.NDArray[np.bool_], probabilities: Floats) -> Floats:
    """Return the threshold of each label, float64 [C] in 0..1, that gives the highest F1.

    truth: bool [N, C]; probabilities: float [N, C]. Candidates are the midpoints between neighbouring
    probabilities. 0.5 is kept unless a candidate is better; in a tie, the candidate nearest to 0.5 is chosen.
    A label that fewer than `FEWEST_FOR_THRESHOLD` of the images have, or lack, keeps 0.5.
    """
    return np.array(
        [_best(truth[:, label], probabilities[:, label]) for label in range(truth.shape[1])], np.float64
    )


def _best(truth: npt.NDArray[np.bool_], scores: Floats) -> float:
    positives = int(truth.sum())
    if min(positives, len(truth) - positives) < FEWEST_FOR_THRESHOLD:
        return USUAL
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    hits, chosen = np.cumsum(truth[order]), np.arange(1, len(order) + 1)
    is_between = ordered[:-1] > ordered[1:]
    f1 = (2 * hits / (chosen + positives))[:-1][is_between]
    middles = ((ordered[:-1] + ordered[1:]) / 2)[is_between]
    if not len(f1) or f1.max() <= _f1_at(truth, scores, USUAL):
        return USUAL
    best = middles[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - USUAL))])


def _f1_at(truth: npt.NDArray[np.bool_], scores: Floats, threshold: float) -> float:
    chosen = scores >= threshold
    return float(2 * np.sum(chosen & truth) / (chosen.sum() + truth.sum()))
