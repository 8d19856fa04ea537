"""Metrics and history to a verdict in words.

In: flat metrics of the training and the held-out split, the history, the settings. Out: a
`Verdict`: over-fitted, under-trained or fine, and what to try next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainer.recipes import recipe_names
from trainer.report.history import History, find_best_epoch, is_rising, read_series
from trainer.report.names import format_count, shorten

Kind = Literal["over-fitted", "under-trained", "fine"]

LARGEST_GAP = 0.08
"""Train minus held-out accuracy above which a run counts as over-fitted.

Networks that learn their pictures by heart show 0.2 and more (0.94 against 0.74 for the plain
network on 2,000 cats and dogs); regularised ones 0.02 to 0.07, which more regularisation rarely lowers
without lowering the held-out accuracy as well. 0.08 lies above the second kind and far below the first.
"""
LEAST_SKILL = 0.5
"""Skill is the share that is learnt of what always naming the most frequent class leaves: 0 is
guessing, 1 is no mistake. A network that does not get half of it on its own training images has
not learnt them yet, whatever the number of classes: 0.75 of two balanced ones, 0.55 of ten.
"""
WIDEST_INTERVAL = 0.2
"""A 95% interval of the accuracy that is wider says that there are too few held-out images."""
_NAME = 40


@dataclass(frozen=True)
class Verdict:
    """How a run came out."""

    kind: Kind
    headline: str
    """One line with the accuracies, their gap and the verdict."""
    advice: str
    """One to three sentences: what to try next."""
    gap: float
    """Train minus held-out accuracy."""
    gap_low: float
    gap_high: float
    """The gap's 95% interval."""
    weakest_class: str | None
    """The class of the lowest recall on the held-out split; None if no image is mistaken."""
    weakest_recall: float | None


@dataclass(frozen=True)
class _Case:
    """What the verdict is made from."""

    metrics: Mapping[str, float]
    history: History
    held_out: str
    settings: Mapping[str, Any]

    def held(self, name: str) -> float:
        return self.metrics[f"{self.held_out}/{name}"]

    def setting(self, path: str) -> Any:
        value: Any = self.settings
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def judge(
    metrics: Mapping[str, float], history: History, held_out: str, settings: Mapping[str, Any]
) -> Verdict:
    """Return the verdict on a run.

    metrics: `train/...` and `<held_out>/...` as `compute_metrics` names them. settings: the
    resolved spec as plain mappings; only the advice depends on it.

    Over-fitted: the gap is above `LARGEST_GAP`, its 95% interval is above 0, so that it is not the
    chance of few images, and the training images are answered with at least `LEAST_SKILL`.
    Under-trained: the held-out split is answered hardly better than by always naming its most
    frequent class, or the training images are answered with less than `LEAST_SKILL`, or the held-out
    accuracy was still rising at the end (see `is_rising`). Fine otherwise.
    """
    case = _Case(metrics, history, held_out, settings)
    low, high = _gap_interval(case)
    gap = metrics["train/accuracy"] - case.held("accuracy")
    kind, words, advice = _decide(case, gap, low, high)
    weakest = _weakest(case)
    return Verdict(
        kind=kind,
        headline=(
            f"{held_out} accuracy {case.held('accuracy'):.3f} "
            f"(95% interval {case.held('accuracy_low'):.3f} to {case.held('accuracy_high'):.3f}), "
            f"train {metrics['train/accuracy']:.3f}: {words}"
        ),
        advice=advice,
        gap=gap,
        gap_low=low,
        gap_high=high,
        weakest_class=weakest[0] if weakest else None,
        weakest_recall=weakest[1] if weakest else None,
    )


def _gap_interval(case: _Case) -> tuple[float, float]:
    """Return the 95% interval of train minus held-out accuracy.

    Newcombe 1998, "Interval estimation for the difference between independent proportions",
    method 10: the two Wilson intervals combined.
    """
    train, held = case.metrics["train/accuracy"], case.held("accuracy")
    below = math.hypot(train - case.metrics["train/accuracy_low"], case.held("accuracy_high") - held)
    above = math.hypot(case.metrics["train/accuracy_high"] - train, held - case.held("accuracy_low"))
    return train - held - below, train - held + above


def _decide(case: _Case, gap: float, low: float, high: float) -> tuple[Kind, str, str]:
    """Return the kind, the headline's last words, and the advice."""
    has_learnt = _skill(case, "train") >= LEAST_SKILL
    if gap > LARGEST_GAP and low > 0 and has_learnt:
        return "over-fitted", f"over-fitted (gap {gap:.3f})", _advice_over_fitted(case)
    share, name = _most_frequent(case)
    if case.held("accuracy_low") <= share and _skill(case, case.held_out) < LEAST_SKILL / 2:
        words = f"under-trained (always answering {name} gives {share:.3f})"
        return "under-trained", words, _advice_low(case)
    if not has_learnt:
        return "under-trained", "under-trained (the train accuracy is low)", _advice_low(case)
    if is_rising(case.history, case.held_out):
        return "under-trained", "under-trained (still rising)", _advice_rising(case)
    if gap > LARGEST_GAP:
        count = format_count(int(case.held("count")), "image")
        words = f"fits, as far as {count} can tell (gap {gap:.3f}, 95% interval {low:.3f} to {high:.3f})"
        return "fine", words, f"Hold out more images: {count} can't tell over-fitting from chance."
    return "fine", f"fits well (gap {gap:.3f})", _advice_fine(case)


def _most_frequent(case: _Case) -> tuple[float, str]:
    """Return the largest class's share of the held-out split, and its name."""
    support = _by_class(case, case.held_out, "support")
    name = max(support, key=lambda each: support[each])
    return support[name] / case.held("count"), shorten(name, _NAME)


def _skill(case: _Case, split: str) -> float:
    guess = max(_by_class(case, split, "support").values()) / case.metrics[f"{split}/count"]
    return (case.metrics[f"{split}/accuracy"] - guess) / (1 - guess) if guess < 1 else 1.0


def _weakest(case: _Case) -> tuple[str, float] | None:
    recalls = _by_class(case, case.held_out, "recall")
    name = min(recalls, key=lambda each: recalls[each])
    return (name, recalls[name]) if recalls[name] < 1 else None


def _by_class(case: _Case, split: str, metric: str) -> dict[str, float]:
    prefix = f"{split}/{metric}/"
    return {key[len(prefix) :]: value for key, value in case.metrics.items() if key.startswith(prefix)}


def _advice_over_fitted(case: _Case) -> str:
    told = [_cure(case)]
    best = find_best_epoch(case.history, case.held_out, "loss")
    validated = read_series(case.history, f"{case.held_out}/loss").epochs
    if best is not None and best <= 0.7 * validated[-1]:
        told.append(
            f"The {case.held_out} loss was lowest in epoch {best} of {validated[-1]:.0f}: "
            f"what came after was learnt by heart."
        )
    return " ".join(told)


def _cure(case: _Case) -> str:
    better = f"{case.setting('recipe')}-augmented"
    if better in recipe_names():
        return f"Try the recipe {better}, which is made against this."
    augment = case.setting("augment")
    if isinstance(augment, Mapping) and not _is_augmented(augment):
        return (
            "Turn on augmentation: set augment.crop, augment.rotate_degrees, or augment.flip where it fits."
        )
    if not case.setting("model.dropout"):
        return "Try dropout, such as model.dropout=0.3, or stronger augmentation."
    if not case.setting("optimizer.weight_decay"):
        return "Try optimizer.name=adamw with optimizer.weight_decay=0.05, or stronger augmentation."
    return "Add training images, augment more strongly, or try a smaller network (model.filters)."


def _is_augmented(augment: Mapping[str, object]) -> bool:
    return any(value not in (None, 0, 0.0, "none") for value in augment.values())


def _advice_low(case: _Case) -> str:
    loss = read_series(case.history, "train/loss").values
    if len(loss) > 1 and loss[-1] < 0.98 * loss[-2]:
        return f"The train loss was still falling: train longer{_more_epochs(case)}."
    return (
        "Train longer, try another optimizer.learning_rate (a third, or three times as much), "
        "a larger network (model.filters), or weaker augmentation; look whether the labels are right."
    )


def _advice_rising(case: _Case) -> str:
    return f"The {case.held_out} accuracy was still rising at the end: train longer{_more_epochs(case)}."


def _more_epochs(case: _Case) -> str:
    planned = case.setting("train.epochs")
    if isinstance(planned, int) and len(case.history) < planned and case.setting("train.time_budget_seconds"):
        return ", with a larger train.time_budget_seconds"
    return f", such as train.epochs={2 * len(case.history)}" if case.history else ""


def _advice_fine(case: _Case) -> str:
    weakest = _weakest(case)
    count = format_count(int(case.held("count")), "image")
    if case.held("accuracy_high") - case.held("accuracy_low") > WIDEST_INTERVAL:
        return f"Hold out more images: {count} can't tell the accuracy any better than this interval."
    if weakest is None:
        return f"No mistake on {count}. Try it on pictures from elsewhere before you rely on it."
    return (
        f"To do better still, add images of the weakest class, {shorten(weakest[0], _NAME)} "
        f"(recall {weakest[1]:.3f}), and look at the most confident mistakes in the report."
    )
