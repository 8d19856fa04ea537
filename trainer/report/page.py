"""Report of a run with one label per image: report.html and plots/*.png.

report.html is a single file without scripts and external resources. The plots are also written as PNG.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from trainer.evaluate.metrics import (
    AnyPredictions,
    Calibration,
    Predictions,
    compute_calibration,
    confusion_matrix,
)
from trainer.report import tables
from trainer.report.figures import render, to_png, to_svg
from trainer.report.heat import draw_overlay
from trainer.report.history import find_best_epoch, read_series
from trainer.report.inputs import ReportInputs
from trainer.report.names import capitalize, format_count, format_duration, format_share, shorten
from trainer.report.pictures import (
    Picture,
    choose_cell,
    choose_correct,
    choose_mistakes,
    encode_picture,
    read_pictures,
)
from trainer.report.plots import (
    MOST_NAMED_CLASSES,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_distribution,
    draw_drift,
)
from trainer.report.verdict import TITLES, Verdict, judge
from trainer.spec.text import parse_mapping
from trainer.storage.local import write_bytes, write_text

_MISTAKES = 12
_CORRECT = 6
_CONFUSIONS = 10
_CELL_PICTURES, _CELL_SIDE = 6, 112
"""Number and largest side in pixels of the images of each kind of mistake."""
_EXPLAINED = 2
"""Mistakes, and as many correct predictions, with an occlusion map."""
_REJECTED = 20
_DUPLICATES = 5
_WEAKEST = 10
_CLASSES = 12
_RUN_NAME = 24
_NOTABLE = 0.02
"""Difference of mean probability and accuracy from which a model counts as miscalibrated."""


@dataclass(frozen=True)
class Plot:
    """One figure with a description of what it shows."""

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


@dataclass(frozen=True)
class ExplainedPicture:
    """One image with its prediction, and the overlay of its occlusion map."""

    picture: Picture
    overlay: str
    """Data URI of the overlay."""
    is_right: bool


@dataclass(frozen=True)
class Contents:
    """The parts of a report that depend on the kind of predictions."""

    template: str
    judge: Callable[[ReportInputs, Mapping[str, Any]], Verdict]
    """Maps inputs and settings to the verdict."""
    draw: Callable[[ReportInputs, Mapping[str, Any]], list[Plot]]
    cards: Callable[[ReportInputs, Verdict], list[Card]]
    context: Callable[[ReportInputs], dict[str, Any]]
    """Returns the template context for the predictions."""


def write_report(run_folder: Path, inputs: ReportInputs) -> Verdict:
    """Write report.html and plots/*.png of a run with one label per image; see `write_page`."""
    return write_page(run_folder, inputs, _SINGLE_LABEL)


def write_page(run_folder: Path, inputs: ReportInputs, contents: Contents) -> Verdict:
    """Write report.html and plots/*.png to `run_folder`; return the verdict.

    Raises TemporaryError (disk full) or UsageError (folder not writable).
    """
    settings = parse_mapping(inputs.spec_yaml, "the spec")
    verdict = contents.judge(inputs, settings)
    plots = [*contents.draw(inputs, settings), *_draw_drift(inputs)]
    for plot in plots:
        write_bytes(run_folder / "plots" / f"{plot.name}.png", to_png(plot.figure))
    context = _context(inputs, settings, verdict, plots)
    context |= {"cards": contents.cards(inputs, verdict), **contents.context(inputs)}
    write_text(run_folder / "report.html", render(contents.template, context))
    return verdict


def _single_label(inputs: ReportInputs) -> Mapping[str, Predictions]:
    return cast(Mapping[str, Predictions], inputs.predictions)


def _judge(inputs: ReportInputs, settings: Mapping[str, Any]) -> Verdict:
    return judge(_single_label(inputs), inputs.history, inputs.held_out, settings, inputs.dataset)


def _draw(inputs: ReportInputs, settings: Mapping[str, Any]) -> list[Plot]:
    predictions = _single_label(inputs)[inputs.held_out]
    counts = tables.split_counts(inputs.dataset)
    matrix = confusion_matrix(predictions)
    calibration = compute_calibration(predictions)
    plots = draw_history(inputs, settings)
    plots += [
        Plot(
            "confusion",
            "Confusion matrix",
            draw_confusion(matrix, predictions.class_names),
            f"Confusion matrix of {len(predictions.labels):,} {inputs.held_out} images: "
            f"{int(np.trace(matrix)):,} are on the diagonal, that is, correct.",
        ),
        Plot("calibration", "Calibration", draw_calibration(calibration), calibration_text(calibration)),
    ]
    if counts:
        text = "; ".join(f"{split}: {_class_sizes(of_class)}" for split, of_class in counts.items())
        plots.append(
            Plot("distribution", "Images per class", draw_distribution(counts), capitalize(f"{text}."))
        )
    return plots


def _draw_drift(inputs: ReportInputs) -> list[Plot]:
    drift = inputs.drift
    if drift is None or not drift.measures:
        return []
    figure = draw_drift(drift.measures, shorten(drift.run, _RUN_NAME), "this run")
    return [Plot("drift", "Changes in the data", figure, " ".join(drift.sentences))]


def draw_history(
    inputs: ReportInputs, settings: Mapping[str, Any], measures: Sequence[str] = ("accuracy", "loss")
) -> list[Plot]:
    """Return one plot per measure over the epochs, with the best epoch marked.

    The best epoch is the one recorded during training, or else the best by the early-stopping monitor, or by
    the first measure without early stopping. There are no plots without a history.
    """
    if not inputs.history:
        return []
    monitor = _monitor(settings, measures[0])
    best = inputs.best_epoch or find_best_epoch(inputs.history, inputs.held_out, monitor)
    plots = []
    for measure in measures:
        ends = [
            f"{split} {series.values[0]:.3f} in the first and {series.values[-1]:.3f} in the last epoch"
            for split in ("train", inputs.held_out)
            if len((series := read_series(inputs.history, f"{split}/{measure}")).values)
        ]
        title = measure.replace("_", " ").capitalize()
        text = f"{title} by epoch: {'; '.join(ends)}."
        figure = draw_curves(inputs.history, inputs.held_out, measure, best, monitor)
        plots.append(Plot(measure, title, figure, text))
    return plots


def _monitor(settings: Mapping[str, Any], usual: str) -> str:
    """Return the metric that selects the best epoch: that of early stopping, or `usual` without it."""
    stopping = settings.get("train", {}).get("early_stopping")
    return str(stopping.get("monitor", "loss")) if isinstance(stopping, Mapping) else usual


def _class_sizes(of_class: Mapping[str, int]) -> str:
    fewest, most = min(of_class, key=of_class.__getitem__), max(of_class, key=of_class.__getitem__)
    total = format_count(sum(of_class.values()), "image")
    if of_class[fewest] == of_class[most]:
        return f"{total}, {of_class[most]:,} of each class"
    least, largest = (f"{of_class[name]:,} ({shorten(name, 40)})" for name in (fewest, most))
    return f"{total}, from {least} to {largest}"


def calibration_text(calibration: Calibration) -> str:
    """Return sentences on whether the mean probability of the predictions agrees with their accuracy."""
    confidence = float(np.average(calibration.confidence, weights=calibration.count))
    accuracy = float(np.average(calibration.accuracy, weights=calibration.count))
    if abs(confidence - accuracy) < _NOTABLE:
        conclusion = "On average, the probabilities agree with the accuracy."
    else:
        conclusion = f"The model is {'overconfident' if confidence > accuracy else 'underconfident'}."
    return (
        f"The mean probability of the predicted classes is {confidence:.3f}, and {accuracy:.3f} of the "
        f"predictions are correct. {conclusion}"
    )


def _context(
    inputs: ReportInputs, settings: Mapping[str, Any], verdict: Verdict, plots: Sequence[Plot]
) -> dict[str, Any]:
    return {
        "inputs": inputs,
        "verdict": verdict,
        "kind": TITLES[verdict.kind],
        "plots": {plot.name: plot for plot in plots},
        "svg": {plot.name: Markup(to_svg(plot.figure, plot.name, plot.description)) for plot in plots},
        "keep": "best" if inputs.keeps_best else "last",
        "recipe": settings.get("recipe"),
        "is_augmented": tables.augment_text(settings) not in ("", "none"),
        "is_smoothed": bool(settings.get("train", {}).get("label_smoothing")),
        "is_weighted": settings.get("train", {}).get("class_weights", "none") != "none",
        "facts": tables.facts(inputs, settings),
        "command": tables.command_text(inputs.environment),
        "drift": inputs.drift,
        "drift_classes": tables.most_changed(inputs.drift.classes, _CLASSES) if inputs.drift else [],
        **_data(inputs),
    }


def _prediction_context(inputs: ReportInputs) -> dict[str, Any]:
    """Return the template context for the held-out predictions."""
    predictions = _single_label(inputs)[inputs.held_out]
    rows = tables.class_rows(inputs.metrics, inputs.held_out, predictions.class_names)
    is_many = len(rows) > MOST_NAMED_CLASSES
    matrix = confusion_matrix(predictions)
    confusions = tables.top_confusions(matrix, predictions.class_names, _CONFUSIONS)
    return {
        "class_rows": rows,
        "weakest_rows": tables.weakest_first(rows)[:_WEAKEST] if is_many else [],
        "confusions": confusions,
        "cells": _cells(confusions, predictions, inputs),
        **examples(inputs),
    }


def _cells(
    confusions: list[tables.Confusion], predictions: Predictions, inputs: ReportInputs
) -> list[tuple[tables.Confusion, list[Picture]]]:
    """Return each kind of mistake in `confusions` with small pictures of its images."""
    number = {name: index for index, name in enumerate(predictions.class_names)}
    rows = [
        choose_cell(predictions, number[confusion.label], number[confusion.predicted], _CELL_PICTURES)
        for confusion in confusions
    ]
    pictures = [read_pictures(predictions, indices, inputs.pictures, _CELL_SIDE) for indices in rows]
    return list(zip(confusions, pictures, strict=True))


def _explained(inputs: ReportInputs) -> list[ExplainedPicture]:
    """Return the most confident mistakes and correct predictions with their maps; empty without a model."""
    predictions = inputs.predictions[inputs.held_out]
    mistakes = choose_mistakes(predictions, _EXPLAINED)
    rows = np.concatenate([mistakes, choose_correct(predictions, _EXPLAINED)])
    if inputs.explain is None or not len(rows):
        return []
    pictures = read_pictures(predictions, rows, inputs.pictures)
    explanations = [inputs.explain(image) for image in inputs.pictures(inputs.held_out, rows)]
    overlays = [encode_picture(draw_overlay(explanation))[0] for explanation in explanations]
    return [
        ExplainedPicture(picture, overlay, number >= len(mistakes))
        for number, (picture, overlay) in enumerate(zip(pictures, overlays, strict=True))
    ]


def examples(inputs: ReportInputs) -> dict[str, Any]:
    """Return the template context for overall metrics, and for images with wrong and correct predictions."""
    splits = list(inputs.predictions)
    held_out, train = inputs.predictions[inputs.held_out], inputs.predictions["train"]
    return {
        "splits": splits,
        "overall_rows": tables.overall_rows(inputs.metrics, splits),
        "mistake_count": _count_mistakes(held_out),
        "train_mistake_count": _count_mistakes(train),
        "train_mistakes": read_pictures(train, choose_mistakes(train, _MISTAKES), inputs.pictures),
        "mistakes": read_pictures(held_out, choose_mistakes(held_out, _MISTAKES), inputs.pictures),
        "explained": _explained(inputs),
        "correct": read_pictures(held_out, choose_correct(held_out, _CORRECT), inputs.pictures),
    }


def _count_mistakes(predictions: AnyPredictions) -> int:
    return int(np.sum(~predictions.right))


def _data(inputs: ReportInputs) -> dict[str, Any]:
    """Return the template context for the data."""
    counts = tables.split_counts(inputs.dataset)
    return {
        "counts": counts,
        "class_names": inputs.predictions[inputs.held_out].class_names,
        "warnings": list(inputs.dataset.get("warnings", [])),
        "duplicates": tables.duplicate_names(inputs.dataset, _DUPLICATES),
        "rejected": list(inputs.rejected[:_REJECTED]),
    }


def _cards(inputs: ReportInputs, verdict: Verdict) -> list[Card]:
    split, metrics = inputs.held_out, inputs.metrics
    count, correct = int(metrics[f"{split}/count"]), int(metrics[f"{split}/correct"])
    interval = (
        f"95% interval {metrics[f'{split}/accuracy_low']:.3f} to {metrics[f'{split}/accuracy_high']:.3f}"
    )
    if verdict.copies:
        clean = metrics["train/accuracy"] - verdict.gap
        interval = f"{clean:.3f} without {format_count(verdict.copies, 'copy', 'copies')} of training images"
    cards = [
        Card(f"{split.capitalize()} accuracy", format_share(metrics[f"{split}/accuracy"]), interval),
        Card(f"Train-{split} gap", f"{verdict.gap:.3f}", f"train {format_share(metrics['train/accuracy'])}"),
        Card("Mistakes", f"{count - correct:,}", f"of {format_count(count, 'image')}"),
        _weakest_card(verdict),
    ]
    if f"{split}/roc_auc" in metrics:
        cards.append(Card("ROC AUC", format_share(metrics[f"{split}/roc_auc"]), "0.5 is guessing"))
    if f"{split}/selective_accuracy" in metrics:
        coverage, accuracy = metrics[f"{split}/coverage"], metrics[f"{split}/selective_accuracy"]
        cards.append(Card("Accepted", format_share(coverage), f"of the images, with accuracy {accuracy:.3f}"))
    epochs = format_count(len(inputs.history), "epoch")
    return [
        *cards,
        Card("Log loss", format_share(metrics[f"{split}/log_loss"]), "0 is perfect"),
        Card("Calibration error", format_share(metrics[f"{split}/calibration_error"]), "0 is perfect"),
        Card("Training time", format_duration(inputs.train_seconds), epochs),
    ]


def _weakest_card(verdict: Verdict) -> Card:
    if verdict.weakest_class is None:
        return Card("Weakest recall", "1.000", "no class has a mistake")
    return Card("Weakest recall", format_share(verdict.weakest_recall), shorten(verdict.weakest_class, 28))


_SINGLE_LABEL = Contents("page.html.j2", _judge, _draw, _cards, _prediction_context)
