"""Figure of the measures of two data sets, as small multiples of their distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.report.drift import MeasureRow
from trainer.report.figures import BLUE, FONT_SIZE, INK, ORANGE, new_figure, style_axes

_COLUMNS = 2
_ROW_INCHES = 1.45
_BINS = 24
_MOST = 0.995
"""Quantile up to which values are drawn; the few above would compress the rest."""


def draw_drift(rows: Sequence[MeasureRow], before: str, now: str) -> Figure:
    """Draw the distribution of each measure before and now; `before` and `now` are the legend labels."""
    lines = math.ceil(len(rows) / _COLUMNS)
    figure = new_figure(_ROW_INCHES * lines + 0.3)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for place, row in zip(axes, rows, strict=False):
        style_axes(place, grid="none")
        place.set_title(
            f"{row.name}{' *' if row.has_moved else ''}", fontsize=FONT_SIZE, color=INK, loc="left", pad=3
        )
        both = np.concatenate([row.before, row.now])
        edges = np.histogram_bin_edges(both[both <= np.quantile(both, _MOST)], _BINS)
        for values, colour, dashes, label in (
            (row.before, BLUE, "--", before), (row.now, ORANGE, "-", now),
        ):  # fmt: skip
            shares = np.histogram(values, edges)[0] / len(values)
            place.stairs(shares, edges, color=colour, linestyle=dashes, linewidth=1.4, label=label)
        place.set_yticks([])
        place.xaxis.set_major_locator(MaxNLocator(nbins=4))
    for place in axes[len(rows) :]:
        place.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=FONT_SIZE, labelcolor=INK
    )
    return figure
