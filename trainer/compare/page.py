"""Comparison page: one HTML file that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trainer import __version__
from trainer.compare.differences import all_differences
from trainer.compare.pair import Comparison
from trainer.compare.pictures import read_disagreements
from trainer.compare.plots import STYLES, draw_overlaid
from trainer.compare.runs import Run
from trainer.compare.text import ROWS, are_repeated, spread
from trainer.report.figures import to_svg
from trainer.report.names import shorten
from trainer.report.render import render


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
            "pairs": [_pair(each, cache_dir) for each in comparisons],
            "footer": f"Made by trainer {__version__}.",
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
        return "Same accuracy, other mean recall" if comparison.is_recall_other else "The same within chance"
    return "Accuracy and mean recall disagree" if comparison.is_contested else "More than chance"


def _pair(comparison: Comparison, cache_dir: Path) -> dict[str, Any]:
    first, second = (shorten(run.name, 60) for run in (comparison.first, comparison.second))
    pictures, why = read_disagreements(comparison, cache_dir)
    is_chance = comparison.is_chance
    metrics = [(comparison.measure, comparison.accuracy, is_chance)] if comparison.others else []
    return {
        "first": first,
        "second": second,
        "title": f"{first} and {second}",
        "heading": _heading(comparison),
        "among": comparison.among,
        "method": comparison.method,
        "mark": "under-trained" if is_chance or comparison.is_contested else "fine",
        "verdict": comparison.verdict,
        "metrics": metrics + [(name, test, test.is_chance) for name, test in comparison.others.items()],
        "pictures": pictures,
        "no_pictures": why,
        "disagreement_count": len(comparison.disagreements),
        "is_known": bool(comparison.first.spec and comparison.second.spec),
        "differences": list(all_differences(comparison.first, comparison.second)),
    }
