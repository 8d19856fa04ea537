"""Page of an audit: suspected label errors, duplicates, odd images, shortcuts and noise groups, as pictures.

It is one HTML file that opens offline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from trainer import __version__
from trainer.audit.audit import Audit
from trainer.audit.summary import summarize_audit
from trainer.report.figures import BLUE, new_figure, render, style_axes, to_svg
from trainer.report.pictures import encode_picture

_MOST_SUSPECTS, _MOST_GROUPS, _MOST_OF_GROUP, _MOST_ODD, _MOST_OF_NOISE = 24, 24, 4, 24, 6
_MOST_PLOTTED_CLASSES = 12


class ShownImage(NamedTuple):
    """One picture with two lines of text."""

    uri: str
    is_small: bool
    name: str
    title: str
    note: str


def audit_page(source: str, audit: Audit) -> str:
    """Return the page as HTML; `source` is its title."""
    return render("audit.html.j2", {"source": source, "version": __version__, **audit_context(audit)})


def audit_context(audit: Audit) -> dict[str, Any]:
    """Return the values of the template's sections."""
    return {
        "count": len(audit.images.items),
        "class_count": len(audit.images.class_names),
        "findings": summarize_audit(audit),
        "suspects": _suspects(audit),
        "groups": [_show_group(audit, group.rows, group.how) for group in _ordered_groups(audit)],
        "group_count": len(audit.duplicates),
        "odd": _odd(audit),
        "far": _far(audit),
        "shortcuts": _shortcuts(audit),
        "noise": _noise(audit),
        "associations": audit.associations,
        "plots": _plots(audit),
    }


def _show(
    audit: Audit, rows: Sequence[int], title: Callable[[int], str], note: Callable[[int], str]
) -> list[ShownImage]:
    """Return the pictures of `rows`; title and note are functions of the position in `rows`."""
    if not rows:
        return []
    images = audit.images.pixels.gather(np.asarray(rows, np.int64))
    return [
        ShownImage(*encode_picture(image), audit.images.items[row].name, title(index), note(index))
        for index, (row, image) in enumerate(zip(rows, images, strict=True))
    ]


def _label(audit: Audit, row: int) -> str:
    labels = audit.images.labels
    return "" if labels is None else audit.images.class_names[int(labels[row])]


def _suspects(audit: Audit) -> dict[str, Any]:
    shown = (audit.suspects or [])[:_MOST_SUSPECTS]
    names = audit.images.class_names
    pictures = _show(
        audit,
        [suspect.row for suspect in shown],
        lambda index: f"{names[shown[index].suggested]} {shown[index].suggested_probability:.3f}",
        lambda index: f"label: {_label(audit, shown[index].row)} {shown[index].label_probability:.3f}",
    )
    probable = sum(suspect.is_probable for suspect in shown)
    return {
        "is_checked": audit.suspects is not None,
        "probable": pictures[:probable],
        "others": pictures[probable:],
        "probable_count": len(audit.probable_errors),
        "count": len(audit.suspects or []),
    }


def _ordered_groups(audit: Audit) -> list[Any]:
    """Return the groups to show: first those in several splits, then those with several labels."""
    first = [*audit.leaks, *audit.contradictions]
    seen: dict[tuple[int, ...], Any] = {group.rows: group for group in (*first, *audit.duplicates)}
    return list(seen.values())[:_MOST_GROUPS]


def _show_group(audit: Audit, rows: Sequence[int], how: str) -> dict[str, Any]:
    shown = rows[:_MOST_OF_GROUP]
    pictures = _show(
        audit,
        shown,
        lambda index: _label(audit, shown[index]),
        lambda index: str(audit.images.splits[shown[index]]),
    )
    return {"pictures": pictures, "how": how, "more": len(rows) - len(shown)}


def _odd(audit: Audit) -> list[ShownImage]:
    shown = [image for image in audit.odd if image.kind != "unreadable"][:_MOST_ODD]
    return _show(
        audit,
        [image.row for image in shown],
        lambda index: shown[index].kind,
        lambda index: shown[index].sentence,
    )


def _far(audit: Audit) -> list[ShownImage]:
    shown = (audit.far or [])[:_MOST_ODD]
    return _show(
        audit,
        [image.row for image in shown],
        lambda index: _label(audit, shown[index].row),
        lambda index: f"distance {shown[index].distance:.2f}",
    )


def _shortcuts(audit: Audit) -> dict[str, Any] | None:
    shortcuts = audit.shortcuts
    if shortcuts is None:
        return None
    return {
        "chance": shortcuts.chance,
        "sentences": shortcuts.sentences(audit.images.class_names),
        "rows": [shortcuts.technical, shortcuts.content, *shortcuts.fields],
    }


def _noise(audit: Audit) -> list[dict[str, Any]]:
    texts = audit.noise.texts
    return [_noise_group(audit, number, text) for number, text in enumerate(texts) if len(texts) > 1]


def _noise_group(audit: Audit, number: int, text: str) -> dict[str, Any]:
    rows = np.flatnonzero(audit.noise.groups == number)
    shown = rows[:: max(1, len(rows) // _MOST_OF_NOISE)][:_MOST_OF_NOISE].tolist()
    pictures = _show(audit, shown, lambda index: _label(audit, shown[index]), lambda index: "")
    return {"text": text, "count": len(rows), "pictures": pictures}


def _plots(audit: Audit) -> list[tuple[str, Markup]]:
    """Return title and SVG of plots of the measures by class; none with several labels or many classes."""
    labels, measures = audit.images.labels, audit.measures
    if labels is None or len(audit.images.class_names) > _MOST_PLOTTED_CLASSES:
        return []
    values = {
        "Shorter side in pixels": np.minimum(measures.width, measures.height),
        "Aspect ratio (width / height)": measures.width / measures.height,
        "Brightness (0 to 1)": measures.brightness,
        "File size in kB": measures.file_bytes / 1000,
    }
    return [
        (
            title,
            Markup(to_svg(_draw_boxes(column, labels, audit.images.class_names), f"audit-{number}", title)),
        )
        for number, (title, column) in enumerate(values.items())
        if np.isfinite(column).any()
    ]


def _draw_boxes(values: Any, labels: Any, class_names: Iterable[str]) -> Figure:
    """Draw median, quartiles and the range from 2.5% to 97.5% of `values` for each class."""
    names = list(class_names)
    figure = new_figure(0.7 + 0.32 * len(names))
    axes = figure.add_subplot()
    style_axes(axes, grid="x")
    for number in range(len(names)):
        own = values[(labels == number) & np.isfinite(values)]
        if len(own):
            low, first, middle, third, high = np.quantile(own, [0.025, 0.25, 0.5, 0.75, 0.975])
            axes.plot([low, high], [number, number], color=BLUE, linewidth=1.2)
            axes.plot(
                [first, third], [number, number], color=BLUE, linewidth=6, solid_capstyle="butt", alpha=0.55
            )
            axes.plot([middle], [number], color=BLUE, marker="|", markersize=11, markeredgewidth=2)
    axes.set_yticks(range(len(names)), [name[:16] for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return figure
