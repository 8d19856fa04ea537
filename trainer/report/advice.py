"""Advice on what to try next, with settings that can be pasted.

`advise` takes the kind of a verdict and its `Case` and returns sentences, the best advice first. It suggests
no setting that the run already has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from trainer.recipes import recipe_names
from trainer.report.case import LARGEST_GAP, LEAST_SKILL, Case, Judged, recalls, skill
from trainer.report.duration import another_rate, fine_tuning, keeps_best, more_epochs, train_on
from trainer.report.guessing import has_unequal_classes
from trainer.report.history import find_best_epoch, is_rising, read_series
from trainer.report.names import format_count, shorten

UNDER_CONFIDENT = 0.05
"""Accuracy minus mean confidence above which a model is under-confident."""
_MOST_SENTENCES = 3
_LEARNT = 0.9
"""Training accuracy from which more epochs no longer help."""
_LEAST_FALL = 0.05
"""Drop of the held-out accuracy since its best epoch up to which it is noise."""
_FEW_COPIES = 0.01
"""Share of copies among the held-out images that is negligible; the report lists them all the same."""
_WIDEST = 65_536
"""Maximum number of filters per layer in a spec."""
_NAME = 40


def advise(kind: str, case: Case) -> str:
    """Return one to five sentences of advice on a run judged as `kind`, the best advice first."""
    sentences = list(dict.fromkeys(_BY_KIND[kind](case)))[:_MOST_SENTENCES]
    if kind != "copied":
        sentences += [*_absent(case), *_more_held_out(case)]
    return " ".join(sentences)


def _guessing(case: Case) -> Iterator[str]:
    yield from _without_copies(case)
    if case.gap > LARGEST_GAP and skill(case.train) >= LEAST_SKILL:
        if case.has_few_images:
            yield from train_on(case) if case.train_score.share < _LEARNT else ()
        else:
            yield (
                f"The training images were learnt by heart (accuracy {case.train_score.share:.3f}), and "
                f"nothing of it holds for others: check whether the labels are right."
            )
        yield from cures(case)
        return
    yield from [*another_rate(case), *_balance(case), *train_on(case)] or _low(case)


def _unproven(case: Case) -> Iterator[str]:
    yield from _without_copies(case)
    yield from train_on(case) if case.train_score.share < _LEARNT else ()
    yield from cures(case) if case.gap > LARGEST_GAP else ()


def _copied(case: Case) -> Iterator[str]:
    yield (
        f"Remove the copies from {case.held.split}, or hold out other images: dataset.json lists them under "
        f"duplicates_across_splits."
    )


def _early(case: Case) -> Iterator[str]:
    yield f"Train longer: {more_epochs(case)}."


def _neglected(case: Case) -> Iterator[str]:
    yield from _without_copies(case)
    yield from _balance(case)
    if is_rising(case.history, case.held.split):
        yield f"The {case.held.split} accuracy was still rising: {more_epochs(case)}."
    name = shorten(case.neglected[0][0], _NAME)
    yield f"Add images of {name}, and look at what they are taken for: the report shows it."


def _over_fitted(case: Case) -> Iterator[str]:
    yield from _without_copies(case)
    yield from _labels(case)
    against = list(cures(case))
    best = find_best_epoch(case.history, case.held.split, "accuracy")
    accuracy = read_series(case.history, f"{case.held.split}/accuracy")
    if best is not None and not case.copies and _has_fallen(case, float(accuracy.values.max())):
        yield (
            f"The {case.held.split} accuracy fell from {accuracy.values.max():.3f} in epoch {best} to "
            f"{accuracy.values[-1]:.3f}, as it does where wrong labels are learnt by heart: check the labels"
            f"{'' if keeps_best(case) else ', and keep the best epoch with --set train.keep=best'}."
        )
    yield against[0]
    lowest = find_best_epoch(case.history, case.held.split, "loss")
    validated = read_series(case.history, f"{case.held.split}/loss").epochs
    if lowest is not None and lowest <= 0.7 * validated[-1] and not keeps_best(case):
        yield (
            f"The {case.held.split} loss was lowest in epoch {lowest} of {validated[-1]:.0f}: "
            f"what came after was learnt by heart."
        )
    yield from against[1:]


def _under_trained(case: Case) -> Iterator[str]:
    yield from _without_copies(case)
    if is_rising(case.history, case.held.split):
        yield f"The {case.held.split} accuracy was still rising: train longer, {more_epochs(case)}."
        return
    yield from [*train_on(case), *another_rate(case), *_labels(case)] or _low(case)


def _contradicted(case: Case) -> Iterator[str]:
    yield from _without_copies(case)
    yield from _labels(case)
    if not case.setting("train.label_smoothing"):
        yield "Until they are right, --set train.label_smoothing=0.1 makes them matter less."


def _limited(case: Case) -> Iterator[str]:
    yield from _without_copies(case)
    yield from _labels(case)
    yield fine_tuning(case)
    yield "Add training images."


def _fine(case: Case) -> Iterator[str]:
    yield from _without_copies(case)
    yield from _labels(case)
    if case.has_few_images:
        return
    yield from _modest(case)
    name, recall, _ = min(recalls(case.held), key=lambda row: row[1])
    if recall == 1:
        count = format_count(case.held_score.count, "image")
        yield f"No mistake on {count}. Try it on pictures from elsewhere before you rely on it."
        return
    yield (
        f"To do better still, add images of the weakest class, {shorten(name, _NAME)} "
        f"(recall {recall:.3f}), and look at the most confident mistakes in the report."
    )


_BY_KIND: Mapping[str, Callable[[Case], Iterator[str]]] = {
    "guessing": _guessing,
    "unproven": _unproven,
    "copied": _copied,
    "early": _early,
    "neglected": _neglected,
    "over-fitted": _over_fitted,
    "under-trained": _under_trained,
    "contradicted": _contradicted,
    "limited": _limited,
    "fine": _fine,
}


def _absent(case: Case) -> Iterator[str]:
    """Yield advice for the classes without a held-out image."""
    absent = [name for label, name in enumerate(case.held.class_names) if label not in case.held.labels]
    if absent:
        more = f" and {len(absent) - 1:,} more" if len(absent) > 1 else ""
        yield f"Hold out images of {shorten(absent[0], _NAME)}{more} too: {case.held.split} has none."


def _more_held_out(case: Case) -> Iterator[str]:
    if not case.has_few_images:
        return
    low, high = case.held_score.interval
    count = format_count(case.held_score.count, "image")
    fraction = case.setting("data.validation_fraction")
    how = "Hold out more images"
    if case.is_stratified and isinstance(fraction, float) and fraction <= 0.25:
        how += f", such as --set data.validation_fraction={2 * fraction:g}"
    width = high - low
    yield f"{how}: {count} can't tell the accuracy any better than this interval, which is {width:.2f} wide."


def _without_copies(case: Case) -> Iterator[str]:
    if case.copies > _FEW_COPIES * len(case.whole.labels):
        yield (
            f"Remove the {format_count(case.copies, 'copy', 'copies')} from {case.held.split}: dataset.json "
            f"lists them under duplicates_across_splits."
        )


def _labels(case: Case) -> Iterator[str]:
    count = len(case.contradicted)
    if count:
        images = format_count(count, "training image is", "training images are")
        yield f"{images} confidently contradicted by the model: check their labels, which the report shows."


def _has_fallen(case: Case, best: float) -> bool:
    """Return whether the last held-out accuracy is below `best` by more than 0.05 and two standard errors."""
    error = float(np.sqrt(best * (1 - best) / len(case.whole.labels)))
    last = read_series(case.history, f"{case.held.split}/accuracy").values[-1]
    return bool(best - last > max(_LEAST_FALL, 2 * error))


def _balance(case: Case) -> Iterator[str]:
    """Yield class weights if classes are unequal, one is hardly ever recognised and weighting is off."""
    if case.neglected and has_unequal_classes(case.train) and not _is_weighted(case):
        name = shorten(case.neglected[0][0], _NAME)
        yield f"The classes are unequal, and {name} is too rare to count: --set train.class_weights=balanced."


def _is_weighted(case: Case) -> bool:
    return case.setting("train.class_weights") not in (None, "none")


def _modest(case: Case) -> Iterator[str]:
    """Yield a remedy for an under-confident model, whose probabilities are lower than its accuracy."""
    lacking = case.held_score.share - float(np.mean(case.held.confidence))
    if lacking <= UNDER_CONFIDENT:
        return
    causes = [
        f"--set {key}=0"
        for key in ("augment.mixup", "augment.cutmix", "train.label_smoothing")
        if case.setting(key)
    ]
    remedy = causes[0] if causes else more_epochs(case)
    yield f"Its probabilities are {lacking:.2f} lower than its answers are right (under-confident): {remedy}."


def cures(case: Judged) -> Iterator[str]:
    """Yield remedies for over-fitting that the run does not use yet."""
    better = f"{case.setting('recipe')}-augmented"
    if better in recipe_names():
        yield f"Try the recipe {better}, which is made against this."
        return
    if case.is_probe:
        yield fine_tuning(case)
        yield "Add training images."
        return
    if not case.is_pretrained:
        yield "Begin with pretrained weights: --recipe auto."
    augment = case.setting("augment")
    if isinstance(augment, Mapping):
        if not _is_augmented(augment):
            yield "Turn on augmentation: --set 'augment.crop={scale: [0.5, 1.0]}'."
        elif not augment.get("crop"):
            yield "Augment more strongly: --set 'augment.crop={scale: [0.5, 1.0]}'."
    if not case.setting("model.dropout"):
        yield "Try dropout: --set model.dropout=0.3."
    if not case.setting("optimizer.weight_decay"):
        yield "Try weight decay: --set optimizer.weight_decay=0.05."
    yield f"Add training images{_other_filters(case, 0.5, ', or try a smaller network: ')}."


def _is_augmented(augment: Mapping[str, object]) -> bool:
    return any(value not in (None, 0, 0.0, "none") for value in augment.values())


def _other_filters(case: Judged, factor: float, before: str) -> str:
    """Return `before` and the setting for a network `factor` times as wide; empty if there is none."""
    filters = list(case.setting("model.filters") or [])
    others = [max(1, round(factor * each)) for each in filters]
    if others == filters or max(others) > _WIDEST:
        return ""
    return f"{before}--set 'model.filters={others}'"


def _low(case: Case) -> Iterator[str]:
    """Yield remedies for a network that has not learnt its training images."""
    for key in ("augment.mixup", "augment.cutmix", "augment.erase"):
        if case.setting(key):
            yield f"Weaken the augmentation: --set {key}=0."
            break
    wider = _other_filters(case, 2, ", or try a larger network: ")
    yield f"Train longer: {more_epochs(case)}{wider}. Look whether the labels are right."
