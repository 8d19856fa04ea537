"""Data drift: differences between a data set and that of an earlier run, with significance tests.

`find_drift` compares dataset.json and images.json of both runs. It returns a `Drift`: sentences and the rows
of tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Any

from trainer.data.items import normalized
from trainer.report.names import capitalize, shorten

Numbers = Sequence[float]

_COMPARATIVES = {
    "brightness": ("darker", "brighter"),
    "contrast": ("lower in contrast", "higher in contrast"),
    "colourfulness": ("less colourful", "more colourful"),
    "warmth": ("bluer", "redder"),
    "width": ("narrower", "wider"),
    "height": ("shorter", "taller"),
    "kilobytes": ("stored in smaller files", "stored in larger files"),
}
"""Comparatives for images with a lower and a higher value of each statistic."""
_PIXEL_STATISTICS = ("brightness", "contrast", "colourfulness", "warmth")
"""Measured after decoding, so other image sizes and other decoding settings change them."""
_LEVEL = 0.01
"""Significance level of all tests."""
_LEAST_STATISTIC = 0.1
"""Minimum Kolmogorov-Smirnov statistic: with thousands of images, invisible differences are significant."""
_LEAST_SHARE = 0.02
_LEAST_SAMPLE = 100
"""Minimum number of images to estimate a share from."""
_MOST_NAMED = 3
"""Maximum number of new and of removed classes that are named."""
_NAME = 40
_SHORT = 20


@dataclass(frozen=True)
class EarlierRun:
    """The earlier run that the data are compared with."""

    name: str
    dataset: Mapping[str, Any]
    """Content of dataset.json."""
    images: Mapping[str, Any]
    """Content of images.json; empty if the run has none."""
    is_decoded_alike: bool = True
    """Whether its spec has the same image size and decoding settings."""


@dataclass(frozen=True)
class ClassCount:
    """Number of images of a class in all splits, before and now."""

    name: str
    before: int
    now: int


@dataclass(frozen=True)
class MeasureRow:
    """One statistic of the sampled images, before and now."""

    name: str
    before: Numbers
    now: Numbers
    mean_before: float
    mean_now: float
    statistic: float
    """Kolmogorov-Smirnov statistic: the largest distance between both distributions, in 0..1."""
    p_value: float
    has_changed: bool
    """Whether the difference is significant and large enough to be visible."""


@dataclass(frozen=True)
class Drift:
    """Differences between a data set and that of an earlier run."""

    run: str
    """Name of the earlier run."""
    sentences: tuple[str, ...]
    """At least one, the most important first."""
    classes: tuple[ClassCount, ...]
    counts: tuple[tuple[str, str, str], ...]
    """(name, before, now) of other counts."""
    measures: tuple[MeasureRow, ...]

    @property
    def brief(self) -> str:
        """Short summary: which statistics and classes changed, or that none did."""
        changed = [row.name for row in self.measures if row.has_changed]
        parts = [*([f"{_enumerate(changed)} changed"] if changed else []), *_class_phrases(self.classes)]
        if not parts:
            parts = ["no significant change" if self.measures else "only counts can be compared"]
        return f"{'; '.join(parts)} (since {shorten(self.run, _SHORT)})"


def find_drift(earlier: EarlierRun, dataset: Mapping[str, Any], images: Mapping[str, Any]) -> Drift:
    """Return how the data of `dataset` and `images` differ from those of the `earlier` run."""
    classes = _class_rows(earlier.dataset, dataset)
    measures = _measure_rows(earlier, images)
    phrases = [*_image_phrases(measures), *_class_phrases(classes)]
    first = f"{'; '.join(phrases)}." if phrases else _no_change_text(earlier, measures)
    more = _exchange_sentences(earlier.images, images)
    if phrases and not measures:
        more.append(_no_change_text(earlier, measures))
    if measures and not earlier.is_decoded_alike:
        more.append(
            "Brightness and colours are not compared, because the image size or the decoding settings differ."
        )
    return Drift(
        run=earlier.name,
        sentences=(capitalize(first), *more),
        classes=classes,
        counts=_counts(earlier, dataset, images),
        measures=measures,
    )


def _no_change_text(earlier: EarlierRun, measures: Sequence[MeasureRow]) -> str:
    if measures:
        return "No image statistic changed significantly."
    statistics = "different image statistics" if earlier.images else "no images.json"
    return f"Only counts can be compared, because the run {shorten(earlier.name, _NAME)} has {statistics}."


def exchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the share of images that are new and the share that were removed; None where unknown.

    Exact if all contents are listed. Otherwise the shares are estimated from the contents below the lowest
    limit of the lists. These are a random sample of both data sets, and the same sample where both are the
    same (Broder 1997): an image that is in both is never counted as new or removed. A share is None if its
    sample has fewer than 100 images.
    """
    contents = [set(images.get("contents", ())) for images in (before, now)]
    if not all(contents):
        return None, None
    limits = [max(of) for of, images in zip(contents, (before, now), strict=True) if not _is_complete(images)]
    if limits:
        contents = [{content for content in of if content <= min(limits)} for of in contents]
    common = len(contents[0] & contents[1])
    least = _LEAST_SAMPLE if limits else 1
    removed, new = (1 - common / len(of) if len(of) >= least else None for of in contents)
    return new, removed


def _is_complete(images: Mapping[str, Any]) -> bool:
    """Return whether images.json lists all contents."""
    return images.get("distinct") == len(images.get("contents", ()))


def _exchange_sentences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    qualifier = "" if _is_complete(before) and _is_complete(now) else "about "
    new, removed = exchanged(before, now)
    parts = [] if new is None else [f"{qualifier}{new:.1%} of the images are new"]
    parts += [] if removed is None else [f"{qualifier}{removed:.1%} of the earlier images were removed"]
    return [f"{capitalize(_enumerate(parts, ', and '))}."] if parts else []


def _enumerate(parts: Sequence[str], conjunction: str = " and ") -> str:
    """Return `a, b and c`."""
    return conjunction.join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _class_rows(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[ClassCount, ...]:
    counts = _count_classes(before), _count_classes(now)
    names = sorted({*counts[0], *counts[1]})
    return tuple(ClassCount(name, *(of_class.get(name, 0) for of_class in counts)) for name in names)


def _count_classes(dataset: Mapping[str, Any]) -> dict[str, int]:
    """Return the images of each class in all splits; names of earlier versions are normalized."""
    counts: dict[str, int] = {}
    for split in dataset.get("splits", {}).values():
        for name, count in split.get("classes", {}).items():
            label = normalized(name)
            counts[label] = counts.get(label, 0) + int(count)
    return counts


def _class_phrases(rows: Sequence[ClassCount]) -> list[str]:
    """Return phrases for new and removed classes, and for the class whose share changed the most."""
    phrases = []
    for change, names in (
        ("is new", [row.name for row in rows if not row.before]),
        ("was removed", [row.name for row in rows if not row.now]),
    ):
        phrases += [f"the class {shorten(name, _NAME)} {change}" for name in names[:_MOST_NAMED]]
    common = [row for row in rows if row.before and row.now]
    if len(common) < 2 or _shares_are_chance(common):
        return phrases
    totals = sum(row.before for row in rows), sum(row.now for row in rows)
    most_changed = max(common, key=lambda row: abs(row.now / totals[1] - row.before / totals[0]))
    before, now = most_changed.before / totals[0], most_changed.now / totals[1]
    if abs(now - before) >= _LEAST_SHARE:
        name = shorten(most_changed.name, _NAME)
        phrases.append(f"the class {name} makes up {now:.0%} of the images (was {before:.0%})")
    return phrases


def _shares_are_chance(rows: Sequence[ClassCount]) -> bool:
    """Return whether both could come from one class distribution (Pearson's chi-squared test)."""
    from scipy.stats import chi2_contingency  # slow import (0.5 s)

    table = [[row.before for row in rows], [row.now for row in rows]]
    return bool(chi2_contingency(table).pvalue >= _LEVEL)


def _measure_rows(earlier: EarlierRun, now: Mapping[str, Any]) -> tuple[MeasureRow, ...]:
    both = [images.get("measures", {}) for images in (earlier.images, now)]
    comparable = [name for name in _COMPARATIVES if earlier.is_decoded_alike or name not in _PIXEL_STATISTICS]
    names = [name for name in comparable if both[0].get(name) and both[1].get(name)]
    return tuple(_measure_row(name, both[0][name], both[1][name], len(names)) for name in names)


def _measure_row(name: str, before: Numbers, now: Numbers, tests: int) -> MeasureRow:
    from scipy.stats import ks_2samp

    result = ks_2samp(before, now)
    statistic, p_value = float(result.statistic), float(result.pvalue)
    # Bonferroni correction for the number of statistics.
    has_changed = p_value < _LEVEL / tests and statistic >= _LEAST_STATISTIC
    means = [sum(values) / len(values) for values in (before, now)]
    return MeasureRow(name, before, now, means[0], means[1], statistic, p_value, has_changed)


def _image_phrases(rows: Sequence[MeasureRow]) -> list[str]:
    changed = sorted((row for row in rows if row.has_changed), key=lambda row: -row.statistic)
    parts = [
        f"{_comparative(row)} ({row.name} {row.mean_now:.3g}, was {row.mean_before:.3g})" for row in changed
    ]
    return [f"the images are {_enumerate(parts)}"] if parts else []


def _comparative(row: MeasureRow) -> str:
    """Return the comparative for a statistic that changed.

    If its mean is unchanged, only its distribution changed.
    """
    if abs(row.mean_now - row.mean_before) < _LEAST_STATISTIC * pstdev([*row.before, *row.now]):
        return f"differently distributed in {row.name}"
    return _COMPARATIVES[row.name][row.mean_now > row.mean_before]


def _counts(
    earlier: EarlierRun, dataset: Mapping[str, Any], images: Mapping[str, Any]
) -> tuple[tuple[str, str, str], ...]:
    datasets = earlier.dataset, dataset
    rows = []
    for split in dict.fromkeys([*earlier.dataset.get("splits", {}), *dataset.get("splits", {})]):
        counts = [of.get("splits", {}).get(split, {}).get("images", 0) for of in datasets]
        rows.append((f"{split} images", *counts))
    rows.append(("rejected files", *(of.get("rejected", {}).get("count", 0) for of in datasets)))
    if all(of.get("distinct") is not None for of in (earlier.images, images)):
        rows.append(("duplicate images", *(of["images"] - of["distinct"] for of in (earlier.images, images))))
    return tuple((name, f"{before:,}", f"{now:,}") for name, before, now in rows)
