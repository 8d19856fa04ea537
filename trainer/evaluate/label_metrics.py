"""Metrics of predictions with any number of labels per image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.ranking import Ranking

Floats = npt.NDArray[np.float64]
_BINS = 15
"""The same number as for one label per image, see `trainer.evaluate.metrics.compute_calibration`."""


def label_metrics(predictions: MultiLabelPredictions) -> dict[str, float]:
    """Return the metrics by name, all in 0..1 but `log_loss` and the counts.

    - `mean_average_precision`: mean of `average_precision/<label>` over the labels that the split has images
      of. Average precision is the sum over the ranked images of precision times the step of recall (as in
      scikit-learn), and does not depend on thresholds.
    - `subset_accuracy`: share of images whose labels are all correct and complete; `accuracy` is the same.
      `hamming_loss`: share of wrong decisions, with one decision per image and label.
    - `precision/<label>`, `recall/<label>`, `f1/<label>` at the thresholds of the model, and their means over
      the labels that the split has images of: `macro_precision`, `macro_recall`, `macro_f1`. A label that is
      never predicted has precision 0.
    - `micro_precision`, `micro_recall`, `micro_f1`: those of all decisions together.
    - `support/<label>`: number of images with the label; without any, it has no other metric and no share in
      the means.
    - `log_loss`: mean binary cross-entropy in nats over images and labels (probabilities are clipped to
      2e-16); `brier`: mean squared error of the probabilities.
    - `calibration_error`: distance of mean probability and share of images, over 15 bins (Guo et al. 2017).
    """
    truth, said = predictions.truth, predictions.predicted
    support = truth.sum(axis=0)
    hits, counts = (truth & said).sum(axis=0), said.sum(axis=0)
    precision, recall = _divided(hits, counts), _divided(hits, support)
    f1 = _divided(2 * hits, counts + support)
    averages = Ranking(truth, predictions.probabilities).average_precisions()
    by_label = {"average_precision": averages, "precision": precision, "recall": recall, "f1": f1}
    present = np.flatnonzero(support)
    found: dict[str, float] = {
        "subset_accuracy": float(predictions.right.mean()),
        "hamming_loss": float((truth != said).mean()),
        **_micro(int(hits.sum()), int(counts.sum()), int(support.sum())),
        **_of_probabilities(predictions),
    }
    for name, values in by_label.items():
        mean = f"mean_{name}" if name == "average_precision" else f"macro_{name}"
        if len(present):
            found[mean] = float(values[present].mean())
        found |= {f"{name}/{predictions.class_names[label]}": float(values[label]) for label in present}
    return found | {
        f"support/{name}": int(images) for name, images in zip(predictions.class_names, support, strict=True)
    }


def _divided(above: npt.NDArray[np.int64], below: npt.NDArray[np.int64]) -> Floats:
    return np.divide(above, below, out=np.zeros(len(below)), where=below > 0)


def _micro(hits: int, said: int, support: int) -> dict[str, float]:
    return {
        "micro_precision": hits / said if said else 0.0,
        "micro_recall": hits / support if support else 0.0,
        "micro_f1": 2 * hits / (said + support) if said + support else 0.0,
    }


def _of_probabilities(predictions: MultiLabelPredictions) -> dict[str, float]:
    scores, truth = predictions.probabilities.ravel(), predictions.truth.ravel()
    of_truth = np.where(truth, scores, 1 - scores)
    bins = np.clip(np.ceil(scores * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    said = np.bincount(bins, weights=scores, minlength=_BINS)
    there = np.bincount(bins, weights=truth, minlength=_BINS)
    return {
        "log_loss": float(-np.mean(np.log(np.maximum(of_truth, np.finfo(np.float64).eps)))),
        "brier": float(np.mean((scores - truth) ** 2)),
        "calibration_error": float(np.abs(said - there).sum() / len(scores)),
    }
