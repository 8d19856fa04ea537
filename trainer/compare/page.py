"""Comparison page: one HTML file that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer import __version__
from trainer.compare.differences import all_differences
from trainer.compare.pair import Comparison
from trainer.compare.pictures import read_disagreements
from trainer.compare.runs import Run
from trainer.compare.text import ROWS, are_repeated, spread
from trainer.report.figures import BLUE, GREEN, MUTED, ORANGE, add_legend, new_figure, style_axes, to_svg
from trainer.report.history import read_series
from trainer.report.names import shorten
from trainer.report.render import render

STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (MUTED, ":"))
"""Colour and dashes of the first four runs; more can't be distinguished in one figure."""
_LEGEND_WIDTH = 20
_TRAINING_LINE_WIDTH = 0.8


def comparison_page(runs: Sequence[Run], comparisons: Sequence[Comparison], cache_dir: Path) -> str:
    """Return the page, as HTML."""
    cells = [(label, [text(run) for run in runs]) for label, text in ROWS]
    return render(
        "compare.html.j2",
        {
            "runs": runs,
            "rows": [(label, row) for label, row in cells if set(row) != {"-"}],
            "spread": f"{spread(runs)}." if len(runs) > 2 and are_repeated(runs) else "",
            "svg": _curves(runs),
            "svg_runs": len(STYLES),
            "more_runs": len(runs) > len(STYLES),
            "pairs": [_pair(comparison, cache_dir) for comparison in comparisons],
            "footer": f"Created by trainer {__version__}.",
        },
        "trainer.compare",
    )


def _curves(runs: Sequence[Run]) -> list[tuple[str, Markup]]:
    drawn = [run for run in runs if run.history][: len(STYLES)]
    if not drawn:
        return []
    names = ", ".join(run.name for run in drawn)
    return [
        (
            measure.capitalize(),
            Markup(to_svg(draw_overlaid(drawn, measure), measure, f"{measure} by epoch of {names}")),
        )
        for measure in ("accuracy", "loss")
    ]


def _heading(comparison: Comparison) -> str:
    if comparison.is_chance:
        return (
            "Same accuracy, different mean recall"
            if comparison.is_recall_other
            else "No significant difference"
        )
    return "Accuracy and mean recall disagree" if comparison.is_contested else "Significant difference"


def _pair(comparison: Comparison, cache_dir: Path) -> dict[str, Any]:
    first, second = (shorten(run.name, 60) for run in (comparison.first, comparison.second))
    pictures, why_missing = read_disagreements(comparison, cache_dir)
    is_chance = comparison.is_chance
    metrics = [(comparison.measure, comparison.accuracy, is_chance)] if comparison.others else []
    return {
        "first": first,
        "second": second,
        "title": f"{first} and {second}",
        "heading": _heading(comparison),
        "among": comparison.among,
        "method": comparison.method,
        "others_method": comparison.others_method,
        "mark": "under-trained" if is_chance or comparison.is_contested else "fine",
        "verdict": comparison.verdict,
        "metrics": metrics + [(name, test, test.is_chance) for name, test in comparison.others.items()],
        "pictures": pictures,
        "no_pictures": why_missing,
        "disagreement_count": len(comparison.disagreements),
        "is_known": bool(comparison.first.spec and comparison.second.spec),
        "differences": list(all_differences(comparison.first, comparison.second)),
    }


def draw_overlaid(runs: Sequence[Run], measure: str) -> Figure:
    """Draw the held-out `measure` ('accuracy' or 'loss') of each run by epoch, and a thin training curve."""
    figure = new_figure(3.1)
    axes = figure.add_subplot()
    style_axes(axes, "epoch", measure)
    for run, (colour, dashes) in zip(runs, STYLES, strict=False):
        held_out = read_series(run.history, f"{run.split}/{measure}")
        train = read_series(run.history, f"train/{measure}")
        axes.plot(
            train.epochs,
            train.values,
            color=colour,
            linestyle=dashes,
            linewidth=_TRAINING_LINE_WIDTH,
            alpha=0.5,
        )
        axes.plot(
            held_out.epochs, held_out.values,
            color=colour, linestyle=dashes, linewidth=1.8, label=_legend_label(run.name),
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    add_legend(axes, 2)
    for text in legend.get_texts() if (legend := axes.get_legend()) else ():
        text.set_parse_math(False)  # a run name may contain dollar signs
    return figure


def _legend_label(name: str) -> str:
    """Return the legend label of a run; Matplotlib omits labels that start with an underscore."""
    text = shorten(name, _LEGEND_WIDTH)
    return f" {text}" if text.startswith("_") else text
