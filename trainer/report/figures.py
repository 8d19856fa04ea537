"""An empty figure in the report's style, and a drawn one as SVG or PNG.

In: sizes, and figures that `plots` has drawn. Out: figures; SVG whose colours and letters are
the page's own, in light and in dark; PNG on white.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1f2328"
MUTED = "#59636e"
GRID = "#d8dee4"
BLUE = "#1f6fb2"
ORANGE = "#b45309"
GREEN = "#0b7a5c"
"""A trio that people with any form of colour blindness tell apart, each readable on white."""

# What stands in the SVG instead, so that the page's scheme decides. The page defines them.
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
}
WIDTH_INCHES = 4.8
"""346 units of the SVG: about a phone's width, so that letters of 9.5 units are legible there."""
FONT_SIZE = 9.5
_PNG_DPI = 200


def new_figure(height_inches: float) -> Figure:
    """Return an empty figure as wide as a column of the page, laid out so that no label is cut."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr, call-arg]
    return figure


def style_axes(axes: Axes, x_label: str = "", y_label: str = "", grid: str = "y") -> None:
    """Give `axes` its labels, and the report's grid (of 'x', 'y', 'both' or 'none') and colours."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=FONT_SIZE, length=0, pad=4)
    axes.set_xlabel(x_label, color=MUTED, fontsize=FONT_SIZE)
    axes.set_ylabel(y_label, color=MUTED, fontsize=FONT_SIZE)
    axes.set_axisbelow(True)
    if grid != "none":
        axes.grid(axis=grid, color=GRID, linewidth=0.7)  # type: ignore[arg-type]


def add_legend(axes: Axes, columns: int) -> None:
    """Put a legend above `axes`, in one row of `columns` entries."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=FONT_SIZE,
        labelcolor=INK,
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.4,
        borderpad=0.2,
    )


def to_png(figure: Figure) -> bytes:
    """Return `figure` as PNG on white."""
    data = io.BytesIO()
    with _quiet():
        _settle(figure)
        figure.savefig(data, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return `figure` as an `<svg>` element for an HTML page, read out as `description`.

    name: starts every id in it, so that several figures live in one page. It has no
    size, no background and no reference to anything outside.
    """
    data = io.StringIO()
    # Letters as text: a tenth of the bytes, in the page's font, and they can be searched.
    with _quiet(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        _settle(figure)
        figure.savefig(data, format="svg", transparent=True)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", data.getvalue(), flags=re.DOTALL)
    # The definitions matplotlib writes at its end apply to a whole page: the page has its own.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"font: ((?:bold )?)([\d.]+)px [^;\"]+", _font, text)
    for colour, variable in _VARIABLES.items():
        text = re.sub(rf"{colour}\b", f"var({variable})", text, flags=re.IGNORECASE)
    view = re.search(r'viewBox="[^"]+"', text)
    opening = (
        f'<svg class="plot" role="img" aria-label="{html.escape(description)}" {view[0] if view else ""}>'
    )
    return opening + text[text.index(">") + 1 :].strip()


def _settle(figure: Figure) -> None:
    """Lay `figure` out once: otherwise each saving does it again, which takes longer than drawing."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _font(found: re.Match[str]) -> str:
    weight = "; font-weight: 600" if found[1] else ""
    return f"font-size: {float(found[2]):g}px{weight}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing of letters that the PNG's font lacks: it shows boxes, and the page has the right ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
