"""Comparison page with the images that two models disagree on: one HTML file that opens offline."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

from trainer import __version__
from trainer.compare.pair import Comparison
from trainer.compare.runs import Run, all_differences
from trainer.compare.text import ROWS, are_repeated, spread
from trainer.data.convert import prepare
from trainer.data.digests import split_digest
from trainer.data.fetch import list_images
from trainer.data.items import Item, Source, normalized
from trainer.data.progress import SilentProgress
from trainer.data.shards.index import ShardManifest
from trainer.data.shards.packed import find_shards, open_shards, packed_items
from trainer.errors import DataError, TrainerError
from trainer.evaluate.metrics import AnyPredictions
from trainer.report.figures import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    add_legend,
    new_figure,
    render,
    style_axes,
    to_svg,
)
from trainer.report.history import read_series
from trainer.report.names import shorten
from trainer.report.pictures import encode_picture
from trainer.spec import DataSpec, parse_spec
from trainer.spec.text import dump_mapping
from trainer.storage.store import Store

MOST = 12
_CIFAR_SIDE = 32
_CHANGED = "The images changed since the runs were trained."


@dataclass(frozen=True)
class Disagreement:
    """One image that only one of two models predicts correctly."""

    uri: str
    """The image as a data URI; empty if it cannot be read."""
    is_small: bool
    name: str
    label: str
    answers: tuple[tuple[str, float, bool], ...]
    """(class or labels, probability, whether correct) of both models."""


def read_disagreements(comparison: Comparison, cache_dir: Path) -> tuple[list[Disagreement], str]:
    """Return the most confident disagreements, half of each kind, and why images cannot be shown.

    At most `MOST` are returned. The second value is empty if the data source can be read.
    """
    first, second = comparison.first.predictions, comparison.second.predictions
    if first is None or second is None or not len(comparison.disagreements):
        return [], ""
    chosen = _most_confident(comparison, first, second)
    try:
        items = _items(comparison, cache_dir, {first.names[index] for index in chosen})
        why_missing = ""
    except (TrainerError, OSError) as error:
        items, why_missing = {}, f"The images cannot be shown: {str(error).splitlines()[0]}"
    return [
        _disagreement(first, second, index, items.get(first.names[index])) for index in chosen
    ], why_missing


def _most_confident(comparison: Comparison, first: AnyPredictions, second: AnyPredictions) -> list[int]:
    indices = comparison.disagreements
    confidence = np.minimum(first.confidence[indices], second.confidence[indices])
    order = indices[np.argsort(-confidence, kind="stable")]
    is_first = first.right[order]
    half = MOST // 2
    kinds = [order[is_first].tolist(), order[~is_first].tolist()]
    return [*kinds[0][: max(half, MOST - len(kinds[1]))], *kinds[1][: max(half, MOST - len(kinds[0]))]][:MOST]


def _items(comparison: Comparison, cache_dir: Path, names: set[str]) -> dict[str, Source]:
    run = comparison.first
    spec = parse_spec(dump_mapping(run.spec), run.uri).data
    packed = find_shards(spec)
    items = (
        _from_files(run, spec, cache_dir) if packed is None else _from_shards(run, *packed, spec, cache_dir)
    )
    return {item.name: item for item in items if item.name in names}


def _from_files(run: Run, spec: DataSpec, cache_dir: Path) -> Iterable[Source]:
    items = list_images(spec, cache_dir, SilentProgress()).items
    _require_unchanged(run, {item.name: item for item in items})
    return items


def _from_shards(
    run: Run, store: Store, manifest: ShardManifest, spec: DataSpec, cache_dir: Path
) -> Iterable[Source]:
    if run.dataset.get("digest") != f"sha256:{manifest.index_sha256}":
        raise DataError(_CHANGED)
    return packed_items(run.split, manifest, *open_shards(store, manifest, spec, cache_dir))


def _require_unchanged(run: Run, items: Mapping[str, Item]) -> None:
    """Raise DataError if the images that the run was evaluated on have changed since."""
    digest = (run.dataset.get("splits", {}).get(run.split) or {}).get("digest")
    names = run.predictions.names if run.predictions else ()
    if digest is None:
        return
    own_items = [items[name] for name in names if name in items]
    contents = [hashlib.sha256(item.read()).hexdigest() for item in own_items]
    # Class names as spelled in the run: earlier versions did not normalize them.
    spelled = {normalized(name): name for name in run.predictions.class_names} if run.predictions else {}
    labels = [spelled.get(item.label, item.label) for item in own_items]
    current = split_digest([item.name for item in own_items], labels, contents)
    if f"sha256:{current}" != digest:
        raise DataError(_CHANGED)


def _disagreement(
    first: AnyPredictions, second: AnyPredictions, index: int, item: Source | None
) -> Disagreement:
    picture = _picture(item) if item is not None else None
    answers = tuple(_answer(predictions, index) for predictions in (first, second))
    uri, is_small = encode_picture(picture) if picture is not None else ("", False)
    return Disagreement(uri, is_small, first.names[index], first.truth_text(index), answers)


def _answer(predictions: AnyPredictions, index: int) -> tuple[str, float, bool]:
    probability, is_right = float(predictions.confidence[index]), bool(predictions.right[index])
    return predictions.predicted_text(index), probability, is_right


def _picture(item: Source) -> np.ndarray | None:
    try:
        data = item.read()
        if item.encoding == "cifar":
            return np.frombuffer(data, np.uint8).reshape(3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(1, 2, 0)
        # Formats that need a Pillow plugin are converted, as for training.
        with Image.open(io.BytesIO(prepare(data, DataSpec().max_image_pixels).data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, TrainerError):
        return None


STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (MUTED, ":"))
"""Colour and dashes of the first four runs; more cannot be distinguished in one figure."""
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
