"""Training curves of several runs in one figure, which differ in colour and dashes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.compare.runs import Run
from trainer.report.figures import BLUE, GREEN, MUTED, ORANGE, add_legend, new_figure, style_axes
from trainer.report.history import read_series
from trainer.report.names import shorten

STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (MUTED, ":"))
"""Colour and dashes of the first four runs; more can't be distinguished in one figure."""
_NAME = 20
_THIN = 0.8


def draw_overlaid(runs: Sequence[Run], measure: str) -> Figure:
    """Draw the held-out `measure` ('accuracy' or 'loss') of each run by epoch, and a thin training curve."""
    figure = new_figure(3.1)
    axes = figure.add_subplot()
    style_axes(axes, "epoch", measure)
    for run, (colour, dashes) in zip(runs, STYLES, strict=False):
        held_out = read_series(run.history, f"{run.split}/{measure}")
        train = read_series(run.history, f"train/{measure}")
        axes.plot(train.epochs, train.values, color=colour, linestyle=dashes, linewidth=_THIN, alpha=0.5)
        axes.plot(
            held_out.epochs, held_out.values,
            color=colour, linestyle=dashes, linewidth=1.8, label=_label(run.name),
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    add_legend(axes, 2)
    for text in legend.get_texts() if (legend := axes.get_legend()) else ():
        text.set_parse_math(False)  # a run name may contain dollar signs
    return figure


def _label(name: str) -> str:
    """Return the legend label of a run; Matplotlib omits labels that start with an underscore."""
    text = shorten(name, _NAME)
    return f" {text}" if text.startswith("_") else text
