"""Figures in the style of the report, and rendering of its templates.

SVG uses the colours and the font of the page, in light and dark mode. PNG has a white background.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.report.names import format_count, format_duration, format_share, shorten

INK = "#1f2328"
MUTED = "#59636e"
GRID = "#d8dee4"
BLUE = "#1f6fb2"
ORANGE = "#b45309"
GREEN = "#0b7a5c"
"""The three colours are distinguishable with any form of colour blindness, and each is readable on white."""

# CSS variables that replace the colours in the SVG. The page defines them for its colour scheme.
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
}
WIDTH_INCHES = 4.8
"""346 SVG units: about the width of a phone screen, so text of 9.5 units is legible there."""
FONT_SIZE = 9.5
_PNG_DPI = 200


def new_figure(height_inches: float) -> Figure:
    """Return an empty figure as wide as a column of the page, laid out so that no label is cut off."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr, call-arg]
    return figure


def style_axes(axes: Axes, x_label: str = "", y_label: str = "", grid: str = "y") -> None:
    """Set the labels, the grid ('x', 'y', 'both' or 'none') and the colours of `axes`."""
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
    """Add a legend above `axes`, with `columns` columns."""
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
    """Return `figure` as PNG with a white background."""
    data = io.BytesIO()
    with _quiet():
        _settle(figure)
        figure.savefig(data, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return `figure` as an `<svg>` element for an HTML page, with `description` as its accessible label.

    name: prefix of every id, so that several figures can share a page. The element has no size, no background
    and no external reference.
    """
    data = io.StringIO()
    # Text instead of glyph paths: a tenth of the bytes, in the page's font, and searchable.
    with _quiet(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        _settle(figure)
        figure.savefig(data, format="svg", transparent=True)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", data.getvalue(), flags=re.DOTALL)
    # Matplotlib's <style> element would apply to the whole page, which has its own.
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
    """Compute the layout of `figure` once: otherwise each save repeats it, which is slower than drawing."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _font(match: re.Match[str]) -> str:
    weight = "; font-weight: 600" if match[1] else ""
    return f"font-size: {float(match[2]):g}px{weight}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings about glyphs missing from the font of the PNG, which are drawn as boxes there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def render(template: str, context: Mapping[str, Any], *packages: str) -> str:
    """Return the page of a template in this package or in one of `packages`.

    Characters that UTF-8 cannot encode, such as undecodable bytes of a file name, become backslash escapes.
    """
    loaders = [jinja2.PackageLoader(package, "") for package in ("trainer.report", *packages)]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": format_share,
        "duration": format_duration,
        "count": format_count,
        "shorten": shorten,
        "broken": _broken,
    }
    page = environment.get_template(template).render(context)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _broken(name: str) -> Markup:
    """Return `name` for HTML, with line-break opportunities after slashes and underscores."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_])", name))
