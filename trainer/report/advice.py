"""Advice on what to try next, with settings that can be pasted.

`advise` takes the kind of a verdict and its `Case` and returns sentences, the most effective advice first. It
suggests no setting that the run already has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from trainer.evaluate.significance import has_unequal_classes
from trainer.recipes import recipe_names
from trainer.report.case import LARGEST_GAP, LEAST_SKILL, AnyCase, Case, recalls, skill
from trainer.report.history import find_best_epoch, is_rising, read_series
from trainer.report.names import format_count, shorten
from trainer.spec import USUAL_RATES, EarlyStoppingSpec

UNDERCONFIDENT = 0.05
"""Accuracy minus mean confidence above which a model is underconfident."""
MOST_ADVICE = 3
"""Maximum number of pieces of advice on the verdict."""
NAME_COLUMNS = 40
"""Maximum width of a class name in a sentence."""
_LEARNT = 0.9
"""Training accuracy from which more epochs no longer help."""
_LEAST_FALL = 0.05
"""Drop of the held-out accuracy since its best epoch up to which it is noise."""
_FEW_COPIES = 0.01
"""Share of copies among the held-out images that is negligible; the report lists them all the same."""
_WIDEST = 65_536
"""Maximum number of filters per layer in a spec."""
_LARGE_LOSS = 2.0
"""Multiple of the loss of guessing; a higher train loss in the first epoch means too high a learning rate."""
_SMALL_FALL = 0.02
"""Relative decrease of the train loss over a quarter of the epochs below which it has converged."""
FINE_TUNE = "Fine-tune the backbone: --set train.epochs=10 --set optimizer.learning_rate=0.0003."
"""Advice for a frozen backbone after logistic regression."""
ADD_IMAGES = "Add training images."
TEST_ELSEWHERE = "Test the model on images from another source before you rely on it."


def advise(kind: str, case: Case) -> str:
    """Return up to five pieces of advice on a run judged as `kind`, the most effective one first."""
    advice = list(dict.fromkeys(_BY_KIND[kind](case)))[:MOST_ADVICE]
    if kind != "copied":
        advice += [*_add_missing_classes(case), *_hold_out_more(case)]
    return " ".join(advice)


def _guessing(case: Case) -> Iterator[str]:
    yield from _remove_copies(case)
    if case.gap > LARGEST_GAP and skill(case.train) >= LEAST_SKILL:
        if case.has_few_images:
            yield from train_longer(case) if case.train_score.share < _LEARNT else ()
        else:
            yield (
                f"The model memorises the training images (accuracy {case.train_score.share:.3f}) and does "
                f"not generalise. Check whether the labels are correct."
            )
        yield from reduce_overfitting(case)
        return
    yield from [*_change_rate(case), *_balance(case), *train_longer(case)] or _raise_capacity(case)


def _unproven(case: Case) -> Iterator[str]:
    yield from _remove_copies(case)
    yield from train_longer(case) if case.train_score.share < _LEARNT else ()
    yield from reduce_overfitting(case) if case.gap > LARGEST_GAP else ()


def _copied(case: Case) -> Iterator[str]:
    yield replace_copies(case.held_out.split)


def replace_copies(split: str) -> str:
    """Return advice for the `split` whose images are all copies of training images."""
    return (
        f"Remove the copies from {split}, or hold out other images. dataset.json lists the copies under "
        f"duplicates_across_splits."
    )


def _early(case: Case) -> Iterator[str]:
    yield f"Train longer: {more_epochs(case)}."


def _neglected(case: Case) -> Iterator[str]:
    yield from _remove_copies(case)
    yield from _balance(case)
    if is_rising(case.history, case.held_out.split):
        yield f"The {case.held_out.split} accuracy was still rising. Train longer: {more_epochs(case)}."
    name = shorten(case.neglected[0][0], NAME_COLUMNS)
    yield f"Add images of {name}. The confusion matrix shows which classes they are confused with."


def _over_fitted(case: Case) -> Iterator[str]:
    yield from _remove_copies(case)
    yield from _check_labels(case)
    remedies = list(reduce_overfitting(case))
    best = find_best_epoch(case.history, case.held_out.split, "accuracy")
    accuracy = read_series(case.history, f"{case.held_out.split}/accuracy")
    if best is not None and not case.copies and _has_fallen(case, float(accuracy.values.max())):
        keep = "" if _keeps_best(case) else ", and keep the best epoch: --set train.keep=best"
        yield (
            f"The {case.held_out.split} accuracy fell from {accuracy.values.max():.3f} in epoch {best} to "
            f"{accuracy.values[-1]:.3f}, which can mean that the model memorises wrong labels. "
            f"Check the labels{keep}."
        )
    yield remedies[0]
    lowest = find_best_epoch(case.history, case.held_out.split, "loss")
    validated = read_series(case.history, f"{case.held_out.split}/loss").epochs
    if lowest is not None and lowest <= 0.7 * validated[-1] and not _keeps_best(case):
        yield (
            f"The {case.held_out.split} loss was lowest in epoch {lowest} of {validated[-1]:.0f}. "
            f"The later epochs overfitted."
        )
    yield from remedies[1:]


def _under_trained(case: Case) -> Iterator[str]:
    yield from _remove_copies(case)
    if is_rising(case.history, case.held_out.split):
        yield f"The {case.held_out.split} accuracy was still rising. Train longer: {more_epochs(case)}."
        return
    yield from [*train_longer(case), *_change_rate(case), *_check_labels(case)] or _raise_capacity(case)


def _contradicted(case: Case) -> Iterator[str]:
    yield from _remove_copies(case)
    yield from _check_labels(case)
    if not case.setting("train.label_smoothing"):
        yield "Until the labels are corrected, reduce their effect: --set train.label_smoothing=0.1."


def _limited(case: Case) -> Iterator[str]:
    yield from _remove_copies(case)
    yield from _check_labels(case)
    yield from (FINE_TUNE, ADD_IMAGES)


def _fine(case: Case) -> Iterator[str]:
    yield from _remove_copies(case)
    yield from _check_labels(case)
    if case.has_few_images:
        return
    yield from _raise_confidence(case)
    name, recall, _ = min(recalls(case.held_out), key=lambda row: row[1])
    if recall == 1:
        count = format_count(case.held_out_score.count, "image")
        yield f"No mistakes on {count}. {TEST_ELSEWHERE}"
        return
    yield (
        f"To improve further, add images of the weakest class, {shorten(name, NAME_COLUMNS)} "
        f"(recall {recall:.3f}), and review the most confident mistakes in the report."
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


def _add_missing_classes(case: Case) -> Iterator[str]:
    """Yield advice for the classes without a held-out image."""
    missing = [
        name for label, name in enumerate(case.held_out.class_names) if label not in case.held_out.labels
    ]
    if missing:
        others = format_count(len(missing) - 1, "other class", "other classes")
        names = shorten(missing[0], NAME_COLUMNS) + (f" and {others}" if len(missing) > 1 else "")
        yield f"Hold out images of {names} too: {case.held_out.split} has none."


def _hold_out_more(case: Case) -> Iterator[str]:
    if not case.has_few_images:
        return
    fraction = case.setting("data.validation_fraction")
    setting = ""
    if case.is_stratified and isinstance(fraction, float) and fraction <= 0.25:
        setting = f": --set data.validation_fraction={2 * fraction:g}"
    width = interval_width(case.held_out_score.count, case.held_out_score.interval)
    yield f"Hold out more images{setting}. {width}"


def interval_width(images: int, interval: tuple[float, float]) -> str:
    """Return a sentence on the width of a 95% interval that was measured on `images` images."""
    return f"With {format_count(images, 'image')}, the 95% interval is {interval[1] - interval[0]:.2f} wide."


def _remove_copies(case: Case) -> Iterator[str]:
    if case.copies > _FEW_COPIES * len(case.whole.labels):
        yield (
            f"Remove the {format_count(case.copies, 'copy', 'copies')} from {case.held_out.split}; "
            f"dataset.json lists them under duplicates_across_splits."
        )


def _check_labels(case: Case) -> Iterator[str]:
    if len(case.contradicted):
        images = format_count(len(case.contradicted), "training image")
        yield (
            f"The model confidently contradicts the labels of {images}. Check these labels; the report shows "
            f"the most confident contradictions."
        )


def _has_fallen(case: Case, best: float) -> bool:
    """Return whether the last held-out accuracy is below `best` by more than 0.05 and two standard errors."""
    error = float(np.sqrt(best * (1 - best) / len(case.whole.labels)))
    last = read_series(case.history, f"{case.held_out.split}/accuracy").values[-1]
    return bool(best - last > max(_LEAST_FALL, 2 * error))


def _balance(case: Case) -> Iterator[str]:
    """Yield class weights if classes are imbalanced, one is rarely recognised and weighting is off."""
    if case.neglected and has_unequal_classes(case.train) and not _is_weighted(case):
        name = shorten(case.neglected[0][0], NAME_COLUMNS)
        yield (
            f"The classes are imbalanced, and {name} is rarely recognised. "
            f"Balance them: --set train.class_weights=balanced."
        )


def _is_weighted(case: Case) -> bool:
    return case.setting("train.class_weights") not in (None, "none")


def _raise_confidence(case: Case) -> Iterator[str]:
    """Yield a remedy for an underconfident model, whose mean probability is below its accuracy."""
    difference = case.held_out_score.share - float(np.mean(case.held_out.confidence))
    if difference <= UNDERCONFIDENT:
        return
    causes = [
        f"--set {key}=0"
        for key in ("augment.mixup", "augment.cutmix", "train.label_smoothing")
        if case.setting(key)
    ]
    remedy = causes[0] if causes else more_epochs(case)
    yield (
        f"The model is underconfident: its mean probability is {difference:.2f} below its accuracy. "
        f"Try {remedy}."
    )


def reduce_overfitting(case: AnyCase) -> Iterator[str]:
    """Yield remedies for overfitting that the run does not use yet."""
    better = f"{case.setting('recipe')}-augmented"
    if better in recipe_names():
        yield f"Try the recipe {better}, which reduces overfitting."
        return
    if case.is_probe:
        yield from (FINE_TUNE, ADD_IMAGES)
        return
    if not case.is_pretrained:
        yield "Start from pretrained weights: --recipe auto."
    augment = case.setting("augment")
    if isinstance(augment, Mapping):
        if not _is_augmented(augment):
            yield "Turn on augmentation: --set 'augment.crop={scale: [0.5, 1.0]}'."
        elif not augment.get("crop"):
            yield "Use stronger augmentation: --set 'augment.crop={scale: [0.5, 1.0]}'."
    if not case.setting("model.dropout"):
        yield "Try dropout: --set model.dropout=0.3."
    if not case.setting("optimizer.weight_decay"):
        yield "Try weight decay: --set optimizer.weight_decay=0.05."
    yield f"Add training images{_with_filters(case, 0.5, ', or try a smaller network: ')}."


def _is_augmented(augment: Mapping[str, object]) -> bool:
    return any(value not in (None, 0, 0.0, "none") for value in augment.values())


def _with_filters(case: AnyCase, factor: float, prefix: str) -> str:
    """Return `prefix` and the setting for a network `factor` times as wide; empty if there is none."""
    filters = list(case.setting("model.filters") or [])
    scaled = [max(1, round(factor * width)) for width in filters]
    if scaled == filters or max(scaled) > _WIDEST:
        return ""
    return f"{prefix}--set 'model.filters={scaled}'"


def _raise_capacity(case: Case) -> Iterator[str]:
    """Yield remedies for a network that has not learnt its training images."""
    for key in ("augment.mixup", "augment.cutmix", "augment.erase"):
        if case.setting(key):
            yield f"Use weaker augmentation: --set {key}=0."
            break
    wider = _with_filters(case, 2, ", or try a larger network: ")
    yield f"Train longer: {more_epochs(case)}{wider}. Check whether the labels are correct."


def train_longer(case: AnyCase) -> Iterator[str]:
    """Yield advice to train longer if the train loss was still falling clearly; to fine-tune, for a probe."""
    if case.is_probe:
        yield FINE_TUNE
        return
    loss = case.losses
    quarter = max(1, len(loss) // 4)
    if 0 < len(loss) < 3 or (len(loss) and loss[-1] < (1 - _SMALL_FALL) * loss[-1 - quarter]):
        reason = "The train loss was still falling. " if len(loss) > 1 else ""
        yield f"{reason}Train longer: {more_epochs(case)}."


def more_epochs(case: AnyCase) -> str:
    """Return the setting that lets the run train longer: that of the limit which ended this training."""
    planned, trained = case.setting("train.epochs"), len(case.history)
    planned = planned if isinstance(planned, int) else trained or 10
    if 0 < trained < planned:
        budget = case.setting("train.time_budget_seconds")
        if _ran_out_of_patience(case) or (case.setting("train.early_stopping") and not budget):
            return f"--set train.early_stopping.patience_epochs={2 * _patience(case)}"
        if budget:
            return f"--set train.time_budget_seconds={2 * budget:g}"
    return f"--set train.epochs={max(10, 2 * planned)}"


def _patience(case: AnyCase) -> int:
    return int(case.setting("train.early_stopping.patience_epochs") or EarlyStoppingSpec().patience_epochs)


def _ran_out_of_patience(case: AnyCase) -> bool:
    """Return whether the best epoch is so far back that early stopping ended the training."""
    if not case.setting("train.early_stopping"):
        return False
    monitor = case.setting("train.early_stopping.monitor") or EarlyStoppingSpec().monitor
    best = find_best_epoch(case.history, case.held_out.split, monitor)
    return best is not None and best <= len(case.history) - _patience(case)


def _keeps_best(case: AnyCase) -> bool:
    """Return whether the predictions are those of the best epoch, not of the last one."""
    keep, stopping = case.setting("train.keep"), case.setting("train.early_stopping")
    return keep == "best" or (keep in (None, "auto") and stopping is not None)


def _change_rate(case: Case) -> Iterator[str]:
    """Yield a lower learning rate if the loss jumped or never fell, a higher one if it falls too slowly."""
    rate = case.setting("optimizer.learning_rate")
    usual = USUAL_RATES.get(str(case.setting("optimizer.name")))
    if not rate or usual is None or not len(case.losses):
        return
    loss = case.losses
    if rate > 0.1 * usual and loss[0] > _LARGE_LOSS * np.log(len(case.train.class_names)):
        reason, change = "The train loss of the first epoch is very high", "Lower"
        suggested = usual if rate > 2 * usual else rate / 10
    elif _is_slow(loss) or (rate < usual / 5 and loss[-1] > 0.8 * loss[0]):
        reason, change = "The train loss hardly fell", "Raise"
        suggested = usual if rate < usual / 2 else 3 * rate
    elif loss[-1] > (1 - _SMALL_FALL) * loss[0]:
        reason, change = "The train loss did not fall", "Lower"
        suggested = usual if rate > 2 * usual else rate / 3
    else:
        return
    yield f"{reason}. {change} the learning rate: --set optimizer.learning_rate={suggested:.1g}."


def _is_slow(loss: np.ndarray[Any, Any]) -> bool:
    """Return whether the loss falls steadily, but by less than a tenth in total."""
    if len(loss) < 4 or loss[-1] < 0.9 * loss[0] or loss.min() == loss.max():
        return False
    from scipy.stats import spearmanr  # slow import (1 s), not needed for short runs

    return bool(spearmanr(np.arange(len(loss)), loss).statistic < -0.9)
