"""A run to `report.html` and `plots/*.png`.

In: `ReportInputs`. Out: one HTML file that needs nothing beside it and runs no script, the
plots as PNG, and the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from trainer.metrics import Calibration, Predictions, compute_calibration, confusion_matrix
from trainer.report import tables
from trainer.report.drift_plot import draw_drift
from trainer.report.figures import to_png, to_svg
from trainer.report.history import find_best_epoch, read_series
from trainer.report.inputs import ReportInputs
from trainer.report.names import format_count, format_duration, format_share, shorten
from trainer.report.pictures import choose_correct, choose_mistakes, read_pictures
from trainer.report.plots import (
    MOST_NAMED_CLASSES,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_distribution,
)
from trainer.report.render import render
from trainer.report.verdict import TITLES, Verdict, judge
from trainer.spec.text import parse_mapping
from trainer.storage.local import write_bytes, write_text

_MISTAKES = 12
_CORRECT = 6
_CONFUSIONS = 10
_REJECTED = 20
_DUPLICATES = 5
_WEAKEST = 10
_CLASSES = 12
_RUN_NAME = 24
_NOTABLE = 0.02


@dataclass(frozen=True)
class Plot:
    """One figure with what it shows, in words."""

    name: str
    title: str
    figure: Figure
    description: str


@dataclass(frozen=True)
class Card:
    """One key number."""

    label: str
    value: str
    note: str


def write_report(run_folder: Path, inputs: ReportInputs) -> Verdict:
    """Write report.html and plots/*.png into `run_folder`; return the verdict.

    Raises TemporaryError (full disk), UsageError (a folder that can't be written).
    """
    settings = parse_mapping(inputs.spec_yaml, "the spec")
    verdict = judge(inputs.predictions, inputs.history, inputs.held_out, settings, inputs.dataset)
    plots = _draw(inputs, settings)
    for plot in plots:
        write_bytes(run_folder / "plots" / f"{plot.name}.png", to_png(plot.figure))
    page = render("page.html.j2", _context(inputs, settings, verdict, plots))
    write_text(run_folder / "report.html", page)
    return verdict


def _draw(inputs: ReportInputs, settings: Mapping[str, Any]) -> list[Plot]:
    predictions = inputs.predictions[inputs.held_out]
    counts = tables.split_counts(inputs.dataset)
    matrix = confusion_matrix(predictions)
    calibration = compute_calibration(predictions)
    plots = _draw_history(inputs, settings)
    plots += [
        Plot(
            "confusion",
            "Confusion matrix",
            draw_confusion(matrix, predictions.class_names),
            f"Confusion matrix of {len(predictions.labels):,} {inputs.held_out} images: "
            f"{int(np.trace(matrix)):,} on the diagonal are right.",
        ),
        Plot("calibration", "Calibration", draw_calibration(calibration), calibration_text(calibration)),
    ]
    if counts:
        text = "; ".join(f"{split}: {_spread(of_class)}" for split, of_class in counts.items())
        plots.append(Plot("distribution", "Images per class", draw_distribution(counts), f"{text}."))
    return plots + _draw_drift(inputs)


def _draw_drift(inputs: ReportInputs) -> list[Plot]:
    drift = inputs.drift
    if drift is None or not drift.measures:
        return []
    figure = draw_drift(drift.measures, shorten(drift.run, _RUN_NAME), "this run")
    return [Plot("drift", "What changed in the data", figure, " ".join(drift.sentences))]


def _draw_history(inputs: ReportInputs, settings: Mapping[str, Any]) -> list[Plot]:
    if not inputs.history:
        return []
    monitor = _monitor(settings)
    best = inputs.best_epoch or find_best_epoch(inputs.history, inputs.held_out, monitor)
    plots = []
    for measure in ("accuracy", "loss"):
        ends = [
            f"{split} {series.values[0]:.3f} at first and {series.values[-1]:.3f} at the end"
            for split in ("train", inputs.held_out)
            if len((series := read_series(inputs.history, f"{split}/{measure}")).values)
        ]
        text = f"{measure.capitalize()} by epoch: {'; '.join(ends)}."
        figure = draw_curves(inputs.history, inputs.held_out, measure, best, monitor)
        plots.append(Plot(measure, measure.capitalize(), figure, text))
    return plots


def _monitor(settings: Mapping[str, Any]) -> str:
    """Return what tells the best epoch: what early stopping watches, else the accuracy."""
    stopping = settings.get("train", {}).get("early_stopping")
    return str(stopping.get("monitor", "loss")) if isinstance(stopping, Mapping) else "accuracy"


def _spread(of_class: Mapping[str, int]) -> str:
    fewest, most = min(of_class, key=of_class.__getitem__), max(of_class, key=of_class.__getitem__)
    total = format_count(sum(of_class.values()), "image")
    if of_class[fewest] == of_class[most]:
        return f"{total}, {of_class[most]:,} of each class"
    least, largest = (f"{of_class[name]:,} ({shorten(name, 40)})" for name in (fewest, most))
    return f"{total}, from {least} to {largest}"


def calibration_text(calibration: Calibration) -> str:
    """Return in a sentence whether answers are as often right as their probabilities say."""
    sure = float(np.average(calibration.confidence, weights=calibration.count))
    right = float(np.average(calibration.accuracy, weights=calibration.count))
    if abs(sure - right) < _NOTABLE:
        kind = "what it says can be taken at its word, on the whole"
    else:
        kind = "the model is over-confident" if sure > right else "the model is under-confident"
    return (
        f"On average an answer has probability {sure:.3f}, and {right:.3f} of the answers are right: {kind}."
    )


def _context(
    inputs: ReportInputs, settings: Mapping[str, Any], verdict: Verdict, plots: Sequence[Plot]
) -> dict[str, Any]:
    predictions = inputs.predictions[inputs.held_out]
    return {
        "inputs": inputs,
        "verdict": verdict,
        "kind": TITLES[verdict.kind],
        "cards": _cards(inputs, verdict),
        "plots": {plot.name: plot for plot in plots},
        "svg": {plot.name: Markup(to_svg(plot.figure, plot.name, plot.description)) for plot in plots},
        "keep": "best" if inputs.keeps_best else "last",
        "recipe": settings.get("recipe"),
        "is_augmented": tables.augment_text(settings) not in ("", "none"),
        "is_smoothed": bool(settings.get("train", {}).get("label_smoothing")),
        "is_weighted": settings.get("train", {}).get("class_weights", "none") != "none",
        "facts": tables.facts(inputs, settings),
        "command": tables.command_text(inputs.environment),
        **_answers(inputs, predictions),
        "drift": inputs.drift,
        "drift_classes": tables.most_changed(inputs.drift.classes, _CLASSES) if inputs.drift else [],
        **_data(inputs),
    }


def _answers(inputs: ReportInputs, predictions: Predictions) -> dict[str, Any]:
    """Return what the template needs of the held-out answers."""
    rows = tables.class_rows(inputs.metrics, inputs.held_out, predictions.class_names)
    is_many = len(rows) > MOST_NAMED_CLASSES
    splits = list(inputs.predictions)
    train = inputs.predictions["train"]
    return {
        "class_rows": rows,
        "weakest_rows": tables.weakest_first(rows)[:_WEAKEST] if is_many else [],
        "confusions": tables.top_confusions(
            confusion_matrix(predictions), predictions.class_names, _CONFUSIONS
        ),
        "splits": splits,
        "overall_rows": tables.overall_rows(inputs.metrics, splits),
        "mistake_count": _wrong(predictions),
        "train_mistake_count": _wrong(train),
        "train_mistakes": read_pictures(train, choose_mistakes(train, _MISTAKES), inputs.pictures),
        "mistakes": read_pictures(predictions, choose_mistakes(predictions, _MISTAKES), inputs.pictures),
        "correct": read_pictures(predictions, choose_correct(predictions, _CORRECT), inputs.pictures),
    }


def _wrong(predictions: Predictions) -> int:
    return int(np.sum(predictions.predicted != predictions.labels))


def _data(inputs: ReportInputs) -> dict[str, Any]:
    """Return what the template needs of the data."""
    counts = tables.split_counts(inputs.dataset)
    return {
        "counts": counts,
        "class_names": inputs.predictions[inputs.held_out].class_names,
        "warnings": list(inputs.dataset.get("warnings", [])),
        "duplicates": tables.duplicate_names(inputs.dataset, _DUPLICATES),
        "rejected": list(inputs.rejected[:_REJECTED]),
    }


def _cards(inputs: ReportInputs, verdict: Verdict) -> list[Card]:
    held, metrics = inputs.held_out, inputs.metrics
    count, correct = int(metrics[f"{held}/count"]), int(metrics[f"{held}/correct"])
    interval = f"95%: {metrics[f'{held}/accuracy_low']:.3f} to {metrics[f'{held}/accuracy_high']:.3f}"
    if verdict.copies:
        clean = metrics["train/accuracy"] - verdict.gap
        interval = f"{clean:.3f} without {format_count(verdict.copies, 'copy', 'copies')} of training images"
    cards = [
        Card(f"{held.capitalize()} accuracy", format_share(metrics[f"{held}/accuracy"]), interval),
        Card(
            f"Gap, train to {held}", f"{verdict.gap:.3f}", f"train {format_share(metrics['train/accuracy'])}"
        ),
        Card("Mistakes", f"{count - correct:,}", f"of {format_count(count, 'image')}"),
        _weakest_card(verdict),
    ]
    if f"{held}/roc_auc" in metrics:
        cards.append(Card("ROC AUC", format_share(metrics[f"{held}/roc_auc"]), "0.5 is guessing"))
    epochs = format_count(len(inputs.history), "epoch")
    return [
        *cards,
        Card("Log loss", format_share(metrics[f"{held}/log_loss"]), "0 is perfect"),
        Card("Calibration error", format_share(metrics[f"{held}/calibration_error"]), "0 is perfect"),
        Card("Training time", format_duration(inputs.train_seconds), epochs),
    ]


def _weakest_card(verdict: Verdict) -> Card:
    if verdict.weakest_class is None:
        return Card("Weakest recall", "1.000", "no class has a mistake")
    return Card("Weakest recall", format_share(verdict.weakest_recall), shorten(verdict.weakest_class, 28))
