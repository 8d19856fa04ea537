"""Verdict on a run with any number of labels per image.

Inputs and kinds are those of `trainer.report.verdict.judge`. The measure is the mean average precision, which
does not depend on thresholds. A constant prediction reaches the mean over the labels of the share of images
that have the label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import special

from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.ranking import Ranking, draws
from trainer.report.advice import cures
from trainer.report.case import LARGEST_GAP, LEAST_SKILL, WIDEST_INTERVAL, Judged, copied_names
from trainer.report.duration import more_epochs, train_on
from trainer.report.history import History, is_rising
from trainer.report.names import format_count, shorten
from trainer.report.verdict import FEWEST_EPOCHS, Kind, Verdict
from trainer.spec import SCRATCH

MEASURE = "mean_average_precision"
_LEVEL = 0.025
_NEGLECTED, _CHANCE = 1 / 3, 0.01
"""As in `trainer.report.case`, with the micro-averaged recall instead of the accuracy."""
_RESAMPLES = 1000
_NAME = 40
_MOST_SENTENCES = 3


@dataclass(frozen=True, eq=False)
class LabelCase(Judged):
    """One run to be judged, with any number of labels per image."""

    train: MultiLabelPredictions
    held: MultiLabelPredictions
    """Predictions for the held-out images without copies of training images; for all of them if all are
    copies."""
    copies: int
    has_only_copies: bool
    history: History
    settings: Mapping[str, Any]

    @cached_property
    def ranking(self) -> Ranking:
        """Ranking of the held-out images."""
        return Ranking(self.held.truth, self.held.probabilities)

    @cached_property
    def precision(self) -> float:
        """Mean average precision on the held-out images; 0 if none of them has a label."""
        return float(np.nan_to_num(self.ranking.mean()))

    @cached_property
    def train_precision(self) -> float:
        """Mean average precision on the training images."""
        return float(np.nan_to_num(Ranking(self.train.truth, self.train.probabilities).mean()))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% interval of the held-out mean average precision (percentiles of 1,000 resamples)."""
        random, (images, labels) = np.random.default_rng(0), self.held.truth.shape
        means = [self.ranking.resampled_means(each) for each in draws(random, _RESAMPLES, images, labels)]
        drawn = np.nan_to_num(np.concatenate(means))
        return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))

    @property
    def gap(self) -> float:
        """Train minus held-out mean average precision."""
        return self.train_precision - self.precision

    @property
    def gap_interval(self) -> tuple[float, float]:
        """95% interval of the gap; the training images, which are more, are treated as exact."""
        low, high = self.interval
        return self.train_precision - high, self.train_precision - low

    @property
    def has_few_images(self) -> bool:
        """Whether there are too few held-out images to measure the precision."""
        return self.interval[1] - self.interval[0] > WIDEST_INTERVAL

    @cached_property
    def beats_guessing(self) -> bool:
        """Whether the probabilities are better than chance, see `Ranking.p_of_chance`."""
        return self.ranking.p_of_chance() < _LEVEL

    @cached_property
    def has_learnt(self) -> bool:
        """Whether the train precision is at least halfway between that of a constant prediction and 1."""
        guess = constant_precision(self.train)
        return self.train_precision - guess >= LEAST_SKILL * (1 - guess)

    @cached_property
    def recalls(self) -> list[tuple[str, float, int]]:
        """(name, recall, images) of each label with held-out images, lowest recall first."""
        support, hits = self.held.truth.sum(axis=0), (self.held.truth & self.held.predicted).sum(axis=0)
        rows = [
            (name, int(hit) / int(count), int(count))
            for name, hit, count in zip(self.held.class_names, hits, support, strict=True)
            if count
        ]
        return sorted(rows, key=lambda row: row[1])

    @cached_property
    def neglected(self) -> list[tuple[str, float, int]]:
        """Labels that are hardly ever found: (name, recall, held-out images), lowest recall first.

        Their recall is less than a third of the micro-averaged recall, by more than chance (binomial test
        with Bonferroni correction).
        """
        count = sum(images for _, _, images in self.recalls)
        whole = sum(recall * images for _, recall, images in self.recalls) / count if count else 0.0
        return [
            row
            for row in self.recalls
            if row[1] < _NEGLECTED * whole
            and special.bdtr(round(row[1] * row[2]), row[2], whole) < _CHANCE / len(self.recalls)
        ]


def constant_precision(predictions: MultiLabelPredictions) -> float:
    """Return the mean average precision of a constant prediction: the mean share of images per label."""
    shares = predictions.truth.mean(axis=0)
    return float(shares[shares > 0].mean()) if (shares > 0).any() else 0.0


def judge_labels(
    predictions: Mapping[str, MultiLabelPredictions],
    history: History,
    held_out: str,
    settings: Mapping[str, Any],
    dataset: Mapping[str, Any],
) -> Verdict:
    """Return the verdict on a run; the arguments are those of `trainer.report.verdict.judge`.

    The kinds and their order are the same, with these differences: a permutation test of the mean average
    precision decides whether the run beats guessing; the gap is that of the mean average precision;
    `contradicted` and `limited` are never returned.
    """
    whole, copies = predictions[held_out], copied_names(dataset, held_out)
    kept = np.array([name not in copies for name in whole.names], dtype=bool)
    held = whole.select(np.flatnonzero(kept)) if kept.any() and not kept.all() else whole
    case = LabelCase(predictions["train"], held, int(np.sum(~kept)), not kept.any(), history, settings)
    kind, words = _decide(case)
    weakest = case.recalls[0] if case.recalls and case.recalls[0][1] < 1 else None
    return Verdict(
        kind=kind,
        headline=f"{_precisions(case)}: {words}",
        advice=" ".join(_advise(kind, case)),
        gap=case.gap,
        gap_low=case.gap_interval[0],
        gap_high=case.gap_interval[1],
        weakest_class=weakest[0] if weakest else None,
        weakest_recall=weakest[1] if weakest else None,
        copies=case.copies,
    )


def _precisions(case: LabelCase) -> str:
    low, high = case.interval
    start = f"{case.held.split} mean average precision {case.precision:.3f}"
    if case.copies and not case.has_only_copies:
        start += f" without {format_count(case.copies, 'exact copy', 'exact copies')} of training images"
    guess = f"a constant answer has {constant_precision(case.held):.3f}"
    return f"{start} (95% interval {low:.3f} to {high:.3f}; {guess}), train {case.train_precision:.3f}"


def _decide(case: LabelCase) -> tuple[Kind, str]:
    """Return the kind and the last words of the headline."""
    count = format_count(len(case.held.names), "image")
    if case.has_only_copies:
        return "copied", "all of these images are exact copies of training images, so this says nothing"
    if not case.beats_guessing:
        is_unproven = case.has_few_images and case.precision > constant_precision(case.held)
        return (
            ("unproven", f"{count} can't tell it from guessing")
            if is_unproven
            else ("guessing", "no better than guessing")
        )
    is_short = 0 < len(case.history) < FEWEST_EPOCHS and not case.is_probe
    if is_short and case.setting("train.start_from") in (None, SCRATCH):
        return "early", f"too early to say after {format_count(len(case.history), 'epoch')}"
    if case.neglected:
        return "neglected", _neglected_words(case)
    if case.gap > LARGEST_GAP and case.gap_interval[0] > 0 and case.has_learnt:
        return "over-fitted", f"over-fitted (gap {case.gap:.3f})"
    if not case.has_learnt:
        return "under-trained", "under-trained (the train precision is low)"
    if is_rising(case.history, case.held.split, MEASURE) and not case.copies and case.precision < 1:
        return "under-trained", "under-trained (still rising)"
    if case.has_few_images:
        return "fine", f"fits, as far as {count} can tell (gap {case.gap:.3f})"
    return "fine", f"fits well (gap {case.gap:.3f})"


def _neglected_words(case: LabelCase) -> str:
    name, recall, count = case.neglected[0]
    others = f", nor are {len(case.neglected) - 1} more" if len(case.neglected) > 1 else ""
    how = "never" if recall == 0 else "hardly ever"
    of = f"recall {recall:.3f} of {format_count(count, 'image')}"
    return f"{shorten(name, _NAME)} is {how} found ({of}){others}"


def _advise(kind: Kind, case: LabelCase) -> list[str]:
    """Return sentences on what to try next, best first."""
    found = list(dict.fromkeys(_sentences(kind, case)))[:_MOST_SENTENCES]
    if case.has_few_images and kind != "copied":
        images = format_count(len(case.held.names), "image")
        found.append(f"Hold out more images: {images} can't tell the measure any better than this interval.")
    return found


def _sentences(kind: Kind, case: LabelCase) -> Iterator[str]:
    if kind == "copied":
        yield f"Remove the copies from {case.held.split}, or hold out others: dataset.json lists them."
        return
    if kind in ("early", "under-trained", "guessing", "unproven"):
        yield from train_on(case)
        if kind == "early" or is_rising(case.history, case.held.split, MEASURE):
            yield f"Train longer: {more_epochs(case)}."
    if kind in ("neglected", "guessing", "unproven") and case.setting("train.class_weights") == "none":
        yield "Rare labels count more with --set train.class_weights=balanced."
    if kind in ("over-fitted", "guessing", "unproven") and case.gap > LARGEST_GAP:
        yield from cures(case)
    if kind == "neglected":
        yield f"Add images of {shorten(case.neglected[0][0], _NAME)}."
    if kind in ("fine", "under-trained", "guessing", "unproven"):
        yield _on_weakest(case)


def _on_weakest(case: LabelCase) -> str:
    averages = case.ranking.average_precisions()
    if np.isnan(averages).all():
        return "No held-out image has a label: hold out some that have."
    worst = int(np.nanargmin(averages))
    name = shorten(case.held.class_names[worst], _NAME)
    if averages[worst] == 1:
        return "Every label is ranked right. Try it on pictures from elsewhere before you rely on it."
    return (
        f"To do better, add images of the weakest label, {name} (average precision {averages[worst]:.3f}), "
        "and look at the surest mistakes in the report: the table may lack labels."
    )
