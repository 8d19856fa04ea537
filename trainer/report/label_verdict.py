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
from trainer.report.advice import (
    ADD_IMAGES,
    FINE_TUNE,
    MOST_ADVICE,
    NAME_COLUMNS,
    TEST_ELSEWHERE,
    interval_width,
    more_epochs,
    reduce_overfitting,
    replace_copies,
    train_longer,
)
from trainer.report.case import LARGEST_GAP, LEAST_SKILL, WIDEST_INTERVAL, AnyCase, without_copies
from trainer.report.history import History, is_rising
from trainer.report.names import format_count, shorten
from trainer.report.verdict import (
    Kind,
    Verdict,
    early_text,
    inconclusive_text,
    is_early,
    neglected_text,
    only_copies_text,
)

MEASURE = "mean_average_precision"
_LEVEL = 0.025
_NEGLECTED, _CHANCE = 1 / 3, 0.01
"""As in `trainer.report.case`, with the micro-averaged recall instead of the accuracy."""
_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class LabelCase(AnyCase):
    """Inputs of the verdict on a run with any number of labels per image."""

    train: MultiLabelPredictions
    held_out: MultiLabelPredictions
    """Predictions for the held-out images without copies of training images; for all of them if all are
    copies."""
    copies: int
    has_only_copies: bool
    history: History
    settings: Mapping[str, Any]

    @cached_property
    def ranking(self) -> Ranking:
        """Ranking of the held-out images."""
        return Ranking(self.held_out.truth, self.held_out.probabilities)

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
        random, (images, labels) = np.random.default_rng(0), self.held_out.truth.shape
        resampled = [self.ranking.resampled_means(rows) for rows in draws(random, _RESAMPLES, images, labels)]
        means = np.nan_to_num(np.concatenate(resampled))
        return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))

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
        support, hits = (
            self.held_out.truth.sum(axis=0),
            (self.held_out.truth & self.held_out.predicted).sum(axis=0),
        )
        rows = [
            (name, int(hit) / int(count), int(count))
            for name, hit, count in zip(self.held_out.class_names, hits, support, strict=True)
            if count
        ]
        return sorted(rows, key=lambda row: row[1])

    @cached_property
    def neglected(self) -> list[tuple[str, float, int]]:
        """Labels that are rarely recognised: (name, recall, held-out images), lowest recall first.

        Their recall is less than a third of the micro-averaged recall, by more than chance (binomial test
        with Bonferroni correction).
        """
        count = sum(images for _, _, images in self.recalls)
        mean = sum(recall * images for _, recall, images in self.recalls) / count if count else 0.0
        return [
            row
            for row in self.recalls
            if row[1] < _NEGLECTED * mean
            and special.bdtr(round(row[1] * row[2]), row[2], mean) < _CHANCE / len(self.recalls)
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
    `contradicted` is never returned.
    """
    whole = predictions[held_out]
    distinct, copies = without_copies(whole, dataset)
    case = LabelCase(predictions["train"], distinct, copies, copies == len(whole.names), history, settings)
    kind, conclusion = _decide(case)
    weakest = case.recalls[0] if case.recalls and case.recalls[0][1] < 1 else None
    return Verdict(
        kind=kind,
        headline=f"{_precisions(case)}: {conclusion}",
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
    start = f"{case.held_out.split} mean average precision {case.precision:.3f}"
    if case.copies and not case.has_only_copies:
        start += f" without {format_count(case.copies, 'exact copy', 'exact copies')} of training images"
    guess = f"a constant prediction has {constant_precision(case.held_out):.3f}"
    return f"{start} (95% interval {low:.3f} to {high:.3f}; {guess}), train {case.train_precision:.3f}"


def _decide(case: LabelCase) -> tuple[Kind, str]:
    """Return the kind and the conclusion of the headline."""
    count, gap = len(case.held_out.names), f"gap {case.gap:.3f}"
    if case.has_only_copies:
        return "copied", only_copies_text(case.held_out.split)
    if not case.beats_guessing:
        is_unproven = case.has_few_images and case.precision > constant_precision(case.held_out)
        if is_unproven:
            return "unproven", inconclusive_text(count)
        return "guessing", "no better than guessing"
    if is_early(case):
        return "early", early_text(case)
    if case.neglected:
        return "neglected", neglected_text(case.neglected)
    if case.gap > LARGEST_GAP and case.gap_interval[0] > 0 and case.has_learnt:
        if case.is_probe:
            return "limited", f"limited by the frozen features ({gap})"
        return "over-fitted", f"overfitted ({gap})"
    if not case.has_learnt:
        return "under-trained", "undertrained (the train precision is low)"
    if is_rising(case.history, case.held_out.split, MEASURE) and not case.copies and case.precision < 1:
        return "under-trained", f"undertrained (the {case.held_out.split} precision was still rising)"
    if case.has_few_images:
        return "fine", f"fits well, as far as {format_count(count, 'image')} can show ({gap})"
    return "fine", f"fits well ({gap})"


def _advise(kind: Kind, case: LabelCase) -> list[str]:
    """Return sentences on what to try next, most effective first."""
    advice = list(dict.fromkeys(_sentences(kind, case)))[:MOST_ADVICE]
    if case.has_few_images and kind != "copied":
        advice.append(f"Hold out more images. {interval_width(len(case.held_out.names), case.interval)}")
    return advice


def _sentences(kind: Kind, case: LabelCase) -> Iterator[str]:
    if kind == "copied":
        yield replace_copies(case.held_out.split)
        return
    if kind == "limited":
        yield from (FINE_TUNE, ADD_IMAGES)
    if kind in ("early", "under-trained", "guessing", "unproven"):
        longer = list(train_longer(case))
        yield from longer
        if not longer and (kind == "early" or is_rising(case.history, case.held_out.split, MEASURE)):
            yield f"Train longer: {more_epochs(case)}."
    if kind in ("neglected", "guessing", "unproven") and case.setting("train.class_weights") == "none":
        yield "Give rare labels more weight: --set train.class_weights=balanced."
    if kind in ("over-fitted", "guessing", "unproven") and case.gap > LARGEST_GAP:
        yield from reduce_overfitting(case)
    if kind == "neglected":
        yield f"Add images of {shorten(case.neglected[0][0], NAME_COLUMNS)}."
    if kind in ("fine", "under-trained", "guessing", "unproven"):
        yield _on_weakest(case)


def _on_weakest(case: LabelCase) -> str:
    averages = case.ranking.average_precisions()
    if np.isnan(averages).all():
        return "No held-out image has a label. Hold out images with labels."
    worst = int(np.nanargmin(averages))
    name = shorten(case.held_out.class_names[worst], NAME_COLUMNS)
    if averages[worst] == 1:
        return f"Every label is ranked perfectly. {TEST_ELSEWHERE}"
    return (
        f"To improve further, add images of the weakest label, {name} (average precision "
        f"{averages[worst]:.3f}), and review the most confident mistakes in the report. Some images may lack "
        f"labels."
    )
