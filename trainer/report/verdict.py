"""Verdict on a run with one label per image.

`judge` decides whether a run is no better than guessing, overfitted, undertrained, fine and so on, and adds
advice on what to try next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.evaluate.metrics import Predictions
from trainer.evaluate.significance import beats_guessing, constant_prediction, has_unequal_classes
from trainer.report.advice import NAME_COLUMNS, advise
from trainer.report.case import LARGEST_GAP, LEAST_SKILL, AnyCase, Case, build_case, recalls, score_of, skill
from trainer.report.history import History, is_rising
from trainer.report.names import format_count, shorten
from trainer.spec import SCRATCH

Kind = Literal[
    "guessing",
    "unproven",
    "copied",
    "early",
    "neglected",
    "contradicted",
    "over-fitted",
    "under-trained",
    "limited",
    "fine",
]
TITLES: dict[Kind, str] = {
    "guessing": "No better than guessing",
    "unproven": "Inconclusive",
    "copied": "Not measured",
    "early": "Too early to judge",
    "neglected": "A class is not recognised",
    "over-fitted": "Overfitted",
    "under-trained": "Undertrained",
    "limited": "Limited by the frozen features",
    "contradicted": "Labels may be wrong",
    "fine": "Fits well",
}
"""Title of each kind in a report."""

FEWEST_EPOCHS = 3
"""Number of epochs below which the curves are not informative."""
CONTRADICTED_SHARE = 0.05
"""Share of training images with contradicted labels from which the labels limit the model.

Measured on generated data: 0.01 to 0.03 with 5% wrong labels, 0.15 to 0.21 with 30%, below 0.03 with none.
"""
_WIDE = 0.1
"""Width of the 95% interval of the accuracy above which the cross-validated accuracy is reported, too."""


@dataclass(frozen=True)
class Verdict:
    """Judgement of a run, with advice."""

    kind: Kind
    headline: str
    """One line with the accuracies, the verdict and, if relevant, the gap."""
    advice: str
    """Sentences on what to try next, most effective first."""
    gap: float
    """Train minus held-out accuracy (mean average precision with several labels), without copies of training
    images."""
    gap_low: float
    gap_high: float
    """Limits of the 95% interval of the gap."""
    weakest_class: str | None
    """Class with the lowest recall on the held-out split; None if there is no mistake."""
    weakest_recall: float | None
    copies: int
    """Number of held-out images that are exact copies of training images."""


def judge(
    predictions: Mapping[str, Predictions],
    history: History,
    held_out: str,
    settings: Mapping[str, Any],
    dataset: Mapping[str, Any] | None = None,
) -> Verdict:
    """Return the verdict on a run.

    predictions: of 'train' and `held_out`. settings: the resolved spec, for `early` and the advice.
    dataset: content of dataset.json; the copies that it lists are excluded. The first kind that applies:

    - copied: every held-out image is a copy of a training image.
    - unproven, guessing: the held-out predictions are not significantly better than a constant prediction of
      the most frequent class (see `beats_guessing`). Unproven if the held-out images are of one class, or too
      few to decide while their accuracy is higher and the training predictions beat guessing.
    - early: a run from fresh weights has fewer than `FEWEST_EPOCHS` epochs (not with logistic regression).
    - neglected: the recall of a class is less than a third of the accuracy, by more than chance.
    - contradicted: the model confidently contradicts `CONTRADICTED_SHARE` of the training labels.
    - limited: the gap of `over-fitted`, with cross-validated logistic regression.
    - over-fitted: the gap is above `LARGEST_GAP`, its 95% interval above 0. This kind and `contradicted` need
      a skill of `LEAST_SKILL` on the training images.
    - under-trained: that skill is lower, or the curve still rises (`is_rising`; not with copies or at 1).
    - fine otherwise.
    """
    case = build_case(predictions, history, held_out, settings, dataset or {})
    kind, conclusion = _decide(case)
    low, high = case.gap_interval
    weakest = _weakest(case)
    return Verdict(
        kind=kind,
        headline=f"{_accuracies(case)}: {conclusion}",
        advice=advise(kind, case),
        gap=case.gap,
        gap_low=low,
        gap_high=high,
        weakest_class=weakest[0] if weakest else None,
        weakest_recall=weakest[1] if weakest else None,
        copies=case.copies,
    )


def _accuracies(case: Case) -> str:
    score, train = case.held_out_score, case.train_score
    interval = f"95% interval {score.interval[0]:.3f} to {score.interval[1]:.3f}"
    start = f"{case.held_out.split} accuracy {score.share:.3f}"
    if case.copies and not case.has_only_copies:
        start += f" without {format_count(case.copies, 'exact copy', 'exact copies')} of training images"
        interval += f"; {score_of(case.whole).share:.3f} with the copies"
    return f"{start} ({interval}), train accuracy {train.share:.3f}{_cross_validated(case)}"


def _cross_validated(case: Case) -> str:
    """Return the cross-validated accuracy of logistic regression if there are few held-out images."""
    low, high = case.held_out_score.interval
    if case.cross_validated is None or high - low <= _WIDE:
        return ""
    images = format_count(len(case.train.labels), "training image")
    return f", cross-validated accuracy {case.cross_validated:.3f} on {images}"


def _decide(case: Case) -> tuple[Kind, str]:
    """Return the kind and the conclusion of the headline."""
    if case.has_only_copies:
        return "copied", only_copies_text(case.held_out.split)
    if not beats_guessing(case.held_out):
        return _decide_on_guessing(case)
    if is_early(case):
        neglected = f"; {neglected_text(case.neglected)}" if case.neglected else ""
        return "early", f"{early_text(case)}{neglected}"
    if case.neglected:
        return "neglected", neglected_text(case.neglected)
    return _decide_on_fit(case)


def is_early(case: AnyCase) -> bool:
    """Return whether a run from fresh weights has fewer than `FEWEST_EPOCHS` epochs."""
    is_short = 0 < len(case.history) < FEWEST_EPOCHS and not case.is_probe
    return is_short and case.setting("train.start_from") in (None, SCRATCH)


def _decide_on_guessing(case: Case) -> tuple[Kind, str]:
    name, share = constant_prediction(case.held_out)
    if share == 1:
        return "unproven", f"inconclusive, because all {case.held_out.split} images are of {_shown(name)}"
    guess = f"always predicting {_shown(name)} gives {share:.3f}"
    if case.has_few_images and case.held_out_score.share > share and beats_guessing(case.train):
        return "unproven", f"{inconclusive_text(case.held_out_score.count)} ({guess})"
    # With equal classes, it is chance which one is not predicted.
    is_neglecting = case.neglected and has_unequal_classes(case.held_out)
    neglected = f"; {neglected_text(case.neglected)}" if is_neglecting else ""
    return "guessing", f"no better than guessing ({guess}){neglected}"


def _shown(name: str) -> str:
    return shorten(name, NAME_COLUMNS)


def only_copies_text(split: str) -> str:
    """Return the conclusion where all images of `split` are copies of training images."""
    return f"not measured, because all {split} images are exact copies of training images"


def inconclusive_text(count: int) -> str:
    """Return the conclusion where `count` held-out images are too few."""
    return f"inconclusive, because {format_count(count, 'image')} cannot show whether it beats guessing"


def early_text(case: AnyCase) -> str:
    """Return the conclusion where the run has too few epochs."""
    return f"too early to judge after {format_count(len(case.history), 'epoch')}"


def neglected_text(rows: Sequence[tuple[str, float, int]]) -> str:
    """Return the conclusion on classes that are rarely recognised: (name, recall, images), lowest first."""
    (name, recall, count), *others = rows
    frequency = "never" if recall == 0 else "rarely"
    text = f"{_shown(name)} is {frequency} recognised (recall {recall:.3f} on {format_count(count, 'image')})"
    if not others:
        return text
    return f"{text}, and {len(others)} more {'is' if len(others) == 1 else 'are'} rarely recognised"


def _decide_on_fit(case: Case) -> tuple[Kind, str]:
    has_learnt = skill(case.train) >= LEAST_SKILL
    low, high = case.gap_interval
    contradicted = len(case.contradicted)
    if has_learnt and contradicted >= CONTRADICTED_SHARE * len(case.train.labels):
        images = format_count(contradicted, "training image")
        return "contradicted", f"the model confidently contradicts the labels of {images}"
    if case.gap > LARGEST_GAP and low > 0 and has_learnt:
        if case.is_probe:
            return "limited", f"limited by the frozen features (gap {case.gap:.3f})"
        return "over-fitted", f"overfitted (gap {case.gap:.3f})"
    if not has_learnt:
        return "under-trained", "undertrained (the train accuracy is low)"
    if is_rising(case.history, case.held_out.split) and not case.copies and case.held_out_score.share < 1:
        return "under-trained", f"undertrained (the {case.held_out.split} accuracy was still rising)"
    if case.gap > LARGEST_GAP or case.has_few_images:
        count = format_count(case.held_out_score.count, "image")
        gap = f"gap {case.gap:.3f}, 95% interval {low:.3f} to {high:.3f}"
        return "fine", f"fits well, as far as {count} can show ({gap})"
    return "fine", f"fits well (gap {case.gap:.3f})"


def _weakest(case: Case) -> tuple[str, float] | None:
    name, recall, _ = min(recalls(case.held_out), key=lambda row: row[1])
    return (name, recall) if recall < 1 else None
