"""Page with the evaluation of a trained model: metrics, confusion matrix and mistakes of every split.

It is one HTML file that opens offline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from trainer import __version__
from trainer.evaluate.metrics import AnyPredictions, Predictions, confusion_matrix
from trainer.report import tables
from trainer.report.figures import render, to_svg
from trainer.report.label_page import LABEL_METRICS
from trainer.report.pictures import Indices, Pixels, choose_mistakes, read_pictures
from trainer.report.plots import draw_confusion

_MISTAKES = 24
_CONFUSIONS = 10


@dataclass(frozen=True, eq=False)
class EvaluatedSplit:
    """Predictions and images of one split."""

    predictions: AnyPredictions
    pixels: Callable[[Indices], Pixels]
    """Maps indices [n] to the network's input images, uint8 [n, height, width, channels]."""


def evaluation_page(
    title: str,
    source: str,
    splits: Sequence[EvaluatedSplit],
    metrics: Mapping[str, Mapping[str, float]],
    warnings: Mapping[str, str],
) -> str:
    """Return the page as HTML.

    metrics: by split, then by name. warnings: by split, of images that the model was trained on.
    """
    return render(
        "evaluation.html.j2",
        {
            "title": title,
            "source": source,
            "version": __version__,
            "splits": [
                _context(split, metrics[name], warnings.get(name, ""))
                for split in splits
                for name in [split.predictions.split]
            ],
        },
    )


def _context(split: EvaluatedSplit, metrics: Mapping[str, float], warning: str) -> dict[str, Any]:
    predictions = split.predictions
    name = predictions.split
    rows = [] if isinstance(predictions, Predictions) else [LABEL_METRICS]
    return {
        "name": name,
        "warning": warning,
        "count": len(predictions.names),
        "overall_rows": tables.overall_rows(
            {f"{name}/{metric}": value for metric, value in metrics.items()}, [name], *rows
        ),
        "mistake_count": int(np.sum(~predictions.right)),
        "mistakes": read_pictures(
            predictions, choose_mistakes(predictions, _MISTAKES), lambda _, rows: split.pixels(rows)
        ),
        **_confusion(predictions),
    }


def _confusion(predictions: AnyPredictions) -> dict[str, Any]:
    """Return the confusion matrix and the most frequent mistakes; none with several labels per image."""
    if not isinstance(predictions, Predictions):
        return {"confusion": "", "confusions": []}
    matrix = confusion_matrix(predictions)
    description = f"Confusion matrix of {len(predictions.labels):,} {predictions.split} images"
    figure = draw_confusion(matrix, predictions.class_names)
    return {
        "confusion": Markup(to_svg(figure, f"confusion-{predictions.split}", description)),
        "confusions": tables.top_confusions(matrix, predictions.class_names, _CONFUSIONS),
    }
