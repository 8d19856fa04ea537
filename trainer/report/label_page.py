"""Report of a run with any number of labels per image.

Like `trainer.report.page`, it consists of report.html and plots/*.png, with average precision and thresholds
instead of the confusion matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from trainer.data.split import FEWEST_FOR_THRESHOLD
from trainer.evaluate.label_predictions import DEFAULT_THRESHOLD, MultiLabelPredictions
from trainer.report import tables
from trainer.report.inputs import ReportInputs
from trainer.report.label_verdict import MEASURE, judge_labels
from trainer.report.names import capitalize, format_count, format_duration, format_share, shorten
from trainer.report.page import Card, Contents, Plot, draw_history, examples, write_page
from trainer.report.plots import draw_distribution
from trainer.report.verdict import Verdict

_WORST = 10
_NAME = 28
LABEL_METRICS = (
    (MEASURE, "mean average precision"),
    ("subset_accuracy", "subset accuracy (all labels correct)"),
    ("hamming_loss", "Hamming loss (wrong decisions)"),
    ("micro_precision", "precision (micro average)"),
    ("micro_recall", "recall (micro average)"),
    ("micro_f1", "F1 (micro average)"),
    ("macro_precision", "precision (macro average)"),
    ("macro_recall", "recall (macro average)"),
    ("macro_f1", "F1 (macro average)"),
    ("log_loss", "log loss"),
    ("brier", "Brier score"),
    ("calibration_error", "calibration error"),
)


@dataclass(frozen=True)
class LabelRow:
    """Metrics of one label on the held-out split; None where it has no images."""

    name: str
    average_precision: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    share: float
    """Share of the images with this label, which is the average precision of a constant prediction."""
    threshold: float | None


def write_label_report(run_folder: Path, inputs: ReportInputs) -> Verdict:
    """Write report.html and plots/*.png to `run_folder`; see `trainer.report.page.write_page`."""
    return write_page(run_folder, inputs, _MULTI_LABEL)


def _predictions(inputs: ReportInputs) -> Mapping[str, MultiLabelPredictions]:
    return cast(Mapping[str, MultiLabelPredictions], inputs.predictions)


def _judge(inputs: ReportInputs, settings: Mapping[str, Any]) -> Verdict:
    return judge_labels(_predictions(inputs), inputs.history, inputs.held_out, settings, inputs.dataset)


def _draw(inputs: ReportInputs, settings: Mapping[str, Any]) -> list[Plot]:
    plots = draw_history(inputs, settings, (MEASURE, "accuracy", "loss"))
    counts = tables.split_counts(inputs.dataset)
    if counts:
        text = "; ".join(
            f"{name}: {format_count(split['images'], 'image')}, {split.get('unlabelled', 0):,} without labels"
            for name, split in inputs.dataset["splits"].items()
        )
        plots.append(
            Plot("distribution", "Images per label", draw_distribution(counts), capitalize(f"{text}."))
        )
    return plots


def _cards(inputs: ReportInputs, verdict: Verdict) -> list[Card]:
    split, metrics = inputs.held_out, inputs.metrics
    count, correct = int(metrics[f"{split}/count"]), int(metrics[f"{split}/correct"])
    average, train = metrics.get(f"{split}/{MEASURE}"), metrics.get(f"train/{MEASURE}")
    weakest = "no labels missed" if verdict.weakest_class is None else shorten(verdict.weakest_class, _NAME)
    recall = 1.0 if verdict.weakest_recall is None else verdict.weakest_recall
    return [
        Card("Mean average precision", format_share(average), f"on {split}"),
        Card(f"Train-{split} gap", f"{verdict.gap:.3f}", f"train {format_share(train)}"),
        Card("Images with mistakes", f"{count - correct:,}", f"of {format_count(count, 'image')}"),
        Card("Weakest recall", format_share(recall), weakest),
        Card("F1", format_share(metrics[f"{split}/micro_f1"]), "micro average"),
        Card("Hamming loss", format_share(metrics[f"{split}/hamming_loss"]), "share of wrong decisions"),
        Card("Calibration error", format_share(metrics[f"{split}/calibration_error"]), "0 is perfect"),
        Card(
            "Training time", format_duration(inputs.train_seconds), format_count(len(inputs.history), "epoch")
        ),
    ]


def _prediction_context(inputs: ReportInputs) -> dict[str, Any]:
    rows = label_rows(inputs.metrics, _predictions(inputs)[inputs.held_out])
    worst = sorted(rows, key=lambda row: 2.0 if row.average_precision is None else row.average_precision)
    return {
        **examples(inputs),
        "label_rows": rows,
        "worst_rows": worst[:_WORST] if len(rows) > _WORST else [],
        "overall_rows": tables.overall_rows(inputs.metrics, list(inputs.predictions), LABEL_METRICS),
        "fewest": FEWEST_FOR_THRESHOLD,
        "default_threshold": DEFAULT_THRESHOLD,
    }


def label_rows(metrics: Mapping[str, float], predictions: MultiLabelPredictions) -> list[LabelRow]:
    """Return one row per label, in label order."""
    thresholds = predictions.thresholds
    return [
        LabelRow(
            name=name,
            average_precision=metrics.get(f"{predictions.split}/average_precision/{name}"),
            precision=metrics.get(f"{predictions.split}/precision/{name}"),
            recall=metrics.get(f"{predictions.split}/recall/{name}"),
            f1=metrics.get(f"{predictions.split}/f1/{name}"),
            support=int(metrics[f"{predictions.split}/support/{name}"]),
            share=metrics[f"{predictions.split}/support/{name}"] / len(predictions.names),
            threshold=None if thresholds is None else float(thresholds[label]),
        )
        for label, name in enumerate(predictions.class_names)
    ]


_MULTI_LABEL = Contents("labels.html.j2", _judge, _draw, _cards, _prediction_context)
