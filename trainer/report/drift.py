"""Data drift: differences between a data set and that of an earlier run, with significance tests.

`find_drift` compares dataset.json and images.json of both runs. It returns a `Drift`, which has sentences and
the rows of tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Any

from trainer.data.labels import normalized
from trainer.report.names import shorten

Numbers = Sequence[float]

_WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("of less contrast", "of more contrast"),
    "colourfulness": ("less colourful", "more colourful"),
    "warmth": ("bluer", "redder"),
    "width": ("narrower", "wider"),
    "height": ("lower", "taller"),
    "kilobytes": ("in smaller files", "in larger files"),
}
"""Adjectives for images with a lower and a higher value of each measure."""
_OF_PIXELS = ("brightness", "contrast", "colourfulness", "warmth")
"""Measured after decoding, so other image sizes and other decoding settings change them."""
_CHANCE = 0.01
_LEAST_STATISTIC = 0.1
"""Minimum Kolmogorov-Smirnov statistic: with thousands of images, invisible differences are significant."""
_LEAST_SHARE = 0.02
_LEAST_SAMPLE = 100
"""Minimum number of images to estimate a share from."""
_NAME = 40
_SHORT = 20


@dataclass(frozen=True)
class Earlier:
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
    """One measure of the sampled images, before and now."""

    name: str
    before: Numbers
    now: Numbers
    mean_before: float
    mean_now: float
    statistic: float
    """Kolmogorov-Smirnov statistic: the largest distance between both distributions, in 0..1."""
    p_value: float
    has_moved: bool
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
    """(what, before, now) of other counts."""
    measures: tuple[MeasureRow, ...]

    @property
    def brief(self) -> str:
        """Short summary: which measures and classes moved, or that none did."""
        moved = [row.name for row in self.measures if row.has_moved]
        words = [*([f"{', '.join(moved)} moved"] if moved else []), *_class_words(self.classes)]
        if not words:
            words = ["no measure moved more than chance does" if self.measures else "only counts are known"]
        return f"{'; '.join(words)} (since {shorten(self.run, _SHORT)})"


def find_drift(earlier: Earlier, dataset: Mapping[str, Any], images: Mapping[str, Any]) -> Drift:
    """Return how the data of `dataset` and `images` differ from those of the `earlier` run."""
    classes = _class_rows(earlier.dataset, dataset)
    measures = _measure_rows(earlier, images)
    parts = [*_look_words(measures), *_class_words(classes)]
    first = f"{'; '.join(parts)}." if parts else _nothing_moved(earlier, measures)
    more = _exchange_words(earlier.images, images)
    if parts and not measures:
        more.append(_nothing_moved(earlier, measures))
    if measures and not earlier.is_decoded_alike:
        more.append(
            "The images are decoded to another size or in another way than then, so their brightness and "
            "colours can't be compared."
        )
    return Drift(
        run=earlier.name,
        sentences=(first[0].upper() + first[1:], *more),
        classes=classes,
        counts=_counts(earlier, dataset, images),
        measures=measures,
    )


def _nothing_moved(earlier: Earlier, measures: Sequence[MeasureRow]) -> str:
    if measures:
        return "No measure of the images moved more than chance does."
    why = "are not the same ones" if earlier.images else "are missing: it left no images.json"
    return f"Only counts can be compared: the measures of the run {shorten(earlier.name, _NAME)} {why}."


def exchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the share of images that are new and the share that are gone; None where unknown.

    Exact if all contents are listed. Otherwise the shares are estimated from the contents below the lowest
    limit of the lists. These are a random sample of both data sets, and the same sample where both are the
    same (Broder 1997): an image that is in both is never counted as new or gone. A share is None if its
    sample has fewer than 100 images.
    """
    keys = [set(each.get("contents", ())) for each in (before, now)]
    if not all(keys):
        return None, None
    limits = [max(of) for of, each in zip(keys, (before, now), strict=True) if not _is_whole(each)]
    if limits:
        keys = [{key for key in each if key <= min(limits)} for each in keys]
    common = len(keys[0] & keys[1])
    least = _LEAST_SAMPLE if limits else 1
    shares = [1 - common / len(each) if len(each) >= least else None for each in keys]
    return shares[1], shares[0]


def _is_whole(images: Mapping[str, Any]) -> bool:
    """Return whether images.json lists all contents."""
    return images.get("distinct") == len(images.get("contents", ()))


def _exchange_words(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    about = "" if _is_whole(before) and _is_whole(now) else "about "
    parts = [
        f"{about}{share:.1%} of the {whose} {what}"
        for share, whose, what in zip(
            exchanged(before, now), ("images", "earlier ones"), ("are new", "are gone"), strict=True
        )
        if share is not None
    ]
    said = ", and ".join(parts)
    return [f"{said[0].upper()}{said[1:]}."] if said else []


def _class_rows(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[ClassCount, ...]:
    both = [_of_classes(each) for each in (before, now)]
    names = sorted({*both[0], *both[1]})
    return tuple(ClassCount(name, both[0].get(name, 0), both[1].get(name, 0)) for name in names)


def _of_classes(dataset: Mapping[str, Any]) -> dict[str, int]:
    """Return the images of each class in all splits; names of earlier versions are normalized."""
    counts: dict[str, int] = {}
    for split in dataset.get("splits", {}).values():
        for name, count in split.get("classes", {}).items():
            label = normalized(name)
            counts[label] = counts.get(label, 0) + int(count)
    return counts


def _class_words(rows: Sequence[ClassCount]) -> list[str]:
    """Return phrases for new and lost classes, and for the class whose share changed the most."""
    words = []
    for what, names in (
        ("is new", [row.name for row in rows if not row.before]),
        ("is gone", [row.name for row in rows if not row.now]),
    ):
        words += [f"the class {shorten(name, _NAME)} {what}" for name in names[:3]]
    kept = [row for row in rows if row.before and row.now]
    if len(kept) < 2 or _shares_are_chance(kept):
        return words
    totals = [sum(getattr(row, when) for row in rows) for when in ("before", "now")]
    moved = max(kept, key=lambda row: abs(row.now / totals[1] - row.before / totals[0]))
    before, now = moved.before / totals[0], moved.now / totals[1]
    if abs(now - before) >= _LEAST_SHARE:
        words.append(f"the class {shorten(moved.name, _NAME)} is {now:.0%} of the images, was {before:.0%}")
    return words


def _shares_are_chance(rows: Sequence[ClassCount]) -> bool:
    """Return whether both could come from one class distribution (Pearson's chi-squared test)."""
    from scipy.stats import chi2_contingency  # slow import (0.5 s)

    table = [[row.before for row in rows], [row.now for row in rows]]
    return bool(chi2_contingency(table).pvalue >= _CHANCE)


def _measure_rows(earlier: Earlier, now: Mapping[str, Any]) -> tuple[MeasureRow, ...]:
    both = [each.get("measures", {}) for each in (earlier.images, now)]
    comparable = [name for name in _WORDS if earlier.is_decoded_alike or name not in _OF_PIXELS]
    names = [name for name in comparable if both[0].get(name) and both[1].get(name)]
    return tuple(_measure_row(name, both[0][name], both[1][name], len(names)) for name in names)


def _measure_row(name: str, before: Numbers, now: Numbers, tests: int) -> MeasureRow:
    from scipy.stats import ks_2samp

    found = ks_2samp(before, now)
    statistic, p_value = float(found.statistic), float(found.pvalue)
    # Bonferroni correction for the number of measures.
    has_moved = p_value < _CHANCE / tests and statistic >= _LEAST_STATISTIC
    means = [sum(each) / len(each) for each in (before, now)]
    return MeasureRow(name, before, now, means[0], means[1], statistic, p_value, has_moved)


def _look_words(rows: Sequence[MeasureRow]) -> list[str]:
    moved = sorted((row for row in rows if row.has_moved), key=lambda row: -row.statistic)
    parts = [f"{_word(row)} ({row.name} {row.mean_now:.3g}, was {row.mean_before:.3g})" for row in moved]
    *first, last = parts or [""]
    return [f"the images are {', '.join(first)}{' and ' if first else ''}{last}"] if parts else []


def _word(row: MeasureRow) -> str:
    """Return the adjective for a measure that moved; without a change of the mean, its spread has changed."""
    if abs(row.mean_now - row.mean_before) < _LEAST_STATISTIC * pstdev([*row.before, *row.now]):
        return f"of a more or less varied {row.name}"
    return _WORDS[row.name][row.mean_now > row.mean_before]


def _counts(
    earlier: Earlier, dataset: Mapping[str, Any], images: Mapping[str, Any]
) -> tuple[tuple[str, str, str], ...]:
    rows = []
    for split in dict.fromkeys([*earlier.dataset.get("splits", {}), *dataset.get("splits", {})]):
        both = [each.get("splits", {}).get(split, {}).get("images", 0) for each in (earlier.dataset, dataset)]
        rows.append((f"{split} images", both[0], both[1]))
    rows.append(
        ("files left out", *(each.get("rejected", {}).get("count", 0) for each in (earlier.dataset, dataset)))
    )
    known = [each for each in (earlier.images, images) if each.get("distinct") is not None]
    if len(known) == len((earlier, images)):
        rows.append(("copies of other images", *(each["images"] - each["distinct"] for each in known)))
    return tuple((what, f"{before:,}", f"{now:,}") for what, before, now in rows)
