"""Plots of training curves, confusion matrix, calibration, class distribution and data drift.

Each function returns one `Figure`, which `figures` converts to SVG and PNG; the functions share no state.
Colour is never the only cue: lines also differ in dashes and markers, and cells have numbers or positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from trainer.evaluate.metrics import Calibration, wilson_interval
from trainer.report.drift import MeasureRow
from trainer.report.figures import (
    BLUE,
    FONT_SIZE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    add_legend,
    new_figure,
    style_axes,
)
from trainer.report.history import History, Series, read_series
from trainer.report.names import shorten

MOST_NUMBERED_CLASSES = 12
"""Maximum number of classes for which a confusion matrix has numbers in its cells."""
MOST_NAMED_CLASSES = 20
"""Maximum number of classes for which a plot has class names."""
_MOST_TICKS = 12
_TICK_STEPS = tuple(digit * 10**power for power in range(1, 9) for digit in (1, 2, 5))
"""Possible steps between the numbered ticks of a matrix without names."""
_NAME = 16
_FEW_POINTS = 25
_SPLITS = {
    "train": (BLUE, "--", "o"),
    "thresholds": (MUTED, ":", "^"),
    "validation": (ORANGE, "-", "s"),
    "test": (GREEN, "-", "D"),
}
# Equally bright in light and dark mode; the opacity grows with the share.
_RIGHT_RGB = (0.23, 0.56, 0.85)
_WRONG_RGB = (0.91, 0.48, 0.16)
_LEAST_OPAQUE, _MOST_OPAQUE = 0.1, 0.8
_DRIFT_COLUMNS = 2
_DRIFT_ROW_INCHES = 1.45
_DRIFT_BINS = 24
_DRIFT_QUANTILE = 0.995
"""Quantile up to which values are drawn; the few above would compress the rest."""
_THOUSANDS = StrMethodFormatter("{x:,.0f}")


def draw_curves(
    history: History, held_out: str, measure: str, best_epoch: int | None, monitor: str = "accuracy"
) -> Figure:
    """Draw the training and the held-out `measure` (such as 'loss' or 'accuracy') over the epochs.

    best_epoch: epoch to mark, from 1. monitor: measure by which it is the best. Measures other than loss and
    accuracy have the held-out curve only.
    """
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    style_axes(axes, "epoch", measure.replace("_", " "))
    splits = ("train", held_out) if measure in ("accuracy", "loss") else (held_out,)
    curves = {split: read_series(history, f"{split}/{measure}") for split in splits}
    for split, series in curves.items():
        _draw_line(axes, split, series)
    if best_epoch is not None:
        _mark_best(axes, curves[held_out], best_epoch, "best: " if measure == monitor else "")
    values = np.concatenate([series.values for series in curves.values()])
    if measure == "loss" and len(values) and values.min() > 0 and values.max() > 20 * np.median(values):
        # One huge value, such as from a first epoch that nearly diverged, would flatten the rest.
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.set_xlim(0.5, max([1.0, *(epoch for series in curves.values() for epoch in series.epochs)]) + 0.5)
    # Room above for the label of the best epoch.
    axes.margins(y=0.14)
    add_legend(axes, 2)
    return figure


def _draw_line(axes: Axes, split: str, series: Series) -> None:
    colour, dashes, marker = _SPLITS[split]
    axes.plot(
        series.epochs,
        series.values,
        color=colour,
        linestyle=dashes,
        marker=marker if len(series.epochs) <= _FEW_POINTS else "",
        markersize=3.2,
        linewidth=1.5,
        label=split,
    )


def _mark_best(axes: Axes, series: Series, best_epoch: int, prefix: str) -> None:
    positions = np.flatnonzero(series.epochs == best_epoch)
    if not len(positions):
        return
    index = int(positions[0])
    x, y = series.epochs[index], series.values[index]
    axes.axvline(x, color=MUTED, linewidth=0.8, linestyle=":")
    axes.plot(
        [x],
        [y],
        color=INK,
        marker="o",
        markersize=7,
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=1.2,
    )
    is_left = index >= len(series.epochs) / 2
    axes.annotate(
        f"{prefix}epoch {best_epoch}, {y:.3f}",
        (x, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if is_left else 4, -2),
        textcoords="offset points",
        ha="right" if is_left else "left",
        va="top",
        fontsize=FONT_SIZE,
        color=INK,
    )


def draw_confusion(matrix: npt.NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, int64 [C, C] with the truth in rows; the opacity is the share of the row."""
    count = len(class_names)
    is_named = count <= MOST_NAMED_CLASSES
    figure = new_figure(3.2 if count == 2 else 4.6)
    axes = figure.add_subplot()
    style_axes(axes, "predicted", "true", grid="none")
    axes.imshow(_shade(matrix), interpolation="none", aspect="equal" if count > 3 else "auto")
    axes.spines[["top", "right"]].set_visible(True)
    axes.spines[["top", "right"]].set_color(GRID)
    if is_named:
        _name_cells(axes, class_names)
    else:
        step = next(step for step in _TICK_STEPS if count <= _MOST_TICKS * step)
        ticks = [0, *range(step - 1, count, step)]
        axes.set_xticks(ticks, [f"{index + 1}" for index in ticks])
        axes.set_yticks(ticks, [f"{index + 1}" for index in ticks])
    if count <= MOST_NUMBERED_CLASSES:
        _number_cells(axes, matrix)
    return figure


def _shade(matrix: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return RGBA, float [C, C, 4] in 0..1: blue if correct, orange if wrong, transparent if empty."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cells = np.empty((*matrix.shape, 4))
    cells[..., :3] = np.where(np.eye(len(matrix), dtype=bool)[..., None], _RIGHT_RGB, _WRONG_RGB)
    # The square root and a minimum opacity keep a mistake of one in a hundred visible.
    opacity = _LEAST_OPAQUE + (_MOST_OPAQUE - _LEAST_OPAQUE) * np.sqrt(shares)
    cells[..., 3] = np.where(shares > 0, opacity, 0.0)
    return cells


def _name_cells(axes: Axes, class_names: Sequence[str]) -> None:
    names = [shorten(name, _NAME) for name in class_names]
    longest = max(map(len, names))
    is_rotated = longest > 12 or (len(names) > 3 and longest > 2)
    size = FONT_SIZE if len(names) <= MOST_NUMBERED_CLASSES else FONT_SIZE - 1.5
    # parse_math=False, because a class name may contain dollar signs.
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=60 if is_rotated else 0,
        ha="right" if is_rotated else "center",
        rotation_mode="anchor",
        fontsize=size,
        parse_math=False,
    )
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)


def _number_cells(axes: Axes, matrix: npt.NDArray[np.int64]) -> None:
    totals = np.maximum(matrix.sum(axis=1), 1)
    size = FONT_SIZE + 2 if len(matrix) <= 3 else FONT_SIZE if matrix.max() < 1000 else FONT_SIZE - 1.5
    for row, column in np.argwhere(matrix > 0).tolist():
        text = f"{matrix[row, column]:,}"
        if len(matrix) <= 3:
            text += f"\n{matrix[row, column] / totals[row]:.1%}"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=INK)


def draw_calibration(calibration: Calibration) -> Figure:
    """Draw the accuracy over the confidence, and the number of images per confidence bin."""
    figure = new_figure(3.7)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    style_axes(upper, "", "accuracy", grid="both")
    style_axes(lower, "predicted probability", "images")
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="perfect calibration")
    intervals = [
        wilson_interval(round(share * count), count)
        for share, count in zip(calibration.accuracy.tolist(), calibration.count.tolist(), strict=True)
    ]
    for x, (low, high) in zip(calibration.confidence.tolist(), intervals, strict=True):
        upper.plot([x, x], [low, high], color=BLUE, linewidth=1, alpha=0.55, solid_capstyle="butt")
    upper.plot(
        calibration.confidence,
        calibration.accuracy,
        color=BLUE,
        marker="o",
        markersize=4,
        linewidth=1.5,
        label="this model, 95% intervals",
    )
    upper.set(xlim=(0, 1.02), ylim=(0, 1.04))
    lower.bar(calibration.confidence, calibration.count, width=0.045, color=BLUE)
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    lower.yaxis.set_major_formatter(_THOUSANDS)
    for axis in (upper.yaxis, lower.xaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    add_legend(upper, 2)
    return figure


def draw_distribution(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw the images of each class (inner keys) in each split (outer keys: train, validation, test)."""
    class_names = list(next(iter(counts.values())))
    if len(class_names) <= MOST_NAMED_CLASSES:
        return _draw_bars(counts, class_names)
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    style_axes(axes, "classes, by number of training images", "images")
    order = sorted(class_names, key=lambda name: -next(iter(counts.values()))[name])
    for split, of_class in counts.items():
        colour, dashes, _ = _SPLITS[split]
        values = [of_class[name] for name in order]
        ranks = np.arange(1, len(order) + 1)
        axes.step(ranks, values, where="mid", color=colour, linestyle=dashes, linewidth=1.5, label=split)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_formatter(_THOUSANDS)
    add_legend(axes, len(counts))
    return figure


def _draw_bars(counts: Mapping[str, Mapping[str, int]], class_names: Sequence[str]) -> Figure:
    bar = 0.8 / len(counts)
    figure = new_figure(0.9 + len(class_names) * max(0.22, 0.15 * len(counts)))
    axes = figure.add_subplot()
    style_axes(axes, "images", grid="x")
    for number, (split, of_class) in enumerate(counts.items()):
        positions = np.arange(len(class_names)) - 0.4 + bar * (number + 0.5)
        values = [of_class[name] for name in class_names]
        bars = axes.barh(positions, values, height=bar * 0.9, color=_SPLITS[split][0], label=split)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=FONT_SIZE - 1.5, color=MUTED)
    names = [shorten(name, _NAME) for name in class_names]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.margins(x=0.12)
    add_legend(axes, len(counts))
    return figure


def draw_drift(rows: Sequence[MeasureRow], before: str, now: str) -> Figure:
    """Draw the distribution of each measure before and now; `before` and `now` are the legend labels."""
    lines = math.ceil(len(rows) / _DRIFT_COLUMNS)
    figure = new_figure(_DRIFT_ROW_INCHES * lines + 0.3)
    axes = figure.subplots(lines, _DRIFT_COLUMNS, squeeze=False).ravel()
    for axis, row in zip(axes, rows, strict=False):
        style_axes(axis, grid="none")
        axis.set_title(
            f"{row.name}{' *' if row.has_changed else ''}", fontsize=FONT_SIZE, color=INK, loc="left", pad=3
        )
        both = np.concatenate([row.before, row.now])
        edges = np.histogram_bin_edges(both[both <= np.quantile(both, _DRIFT_QUANTILE)], _DRIFT_BINS)
        for values, colour, dashes, label in (
            (row.before, BLUE, "--", before), (row.now, ORANGE, "-", now),
        ):  # fmt: skip
            shares = np.histogram(values, edges)[0] / len(values)
            axis.stairs(shares, edges, color=colour, linestyle=dashes, linewidth=1.4, label=label)
        axis.set_yticks([])
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
    for axis in axes[len(rows) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=FONT_SIZE, labelcolor=INK
    )
    return figure
