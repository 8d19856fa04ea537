"""Settings chosen from the data and the machine, for the recipes `auto`, `fast` and `best`.

Pure functions of a few facts: the same data on the same kind of machine give the same settings. Whatever the
user sets takes precedence over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Goal = Literal["auto", "fast", "best"]

_SMALL_SIDE = 96
"""Images below this many pixels are blown up for a backbone that was trained on photos of 224 pixels."""
_SMALL_SIZE = 128
_PHOTO_SIZE, _PHOTO_FRACTION = 224, 0.875
_MOST_FITTED = 50_000_000
"""Images times classes above which the head is trained in steps and not by logistic regression."""
_UNEQUAL = 1.5
"""Times the images of the smallest class that the largest one has, above which classes are weighted."""
_FINETUNE_IMAGES = 45_000
"""Images that all epochs of fine-tuning take together on a CPU."""
_STEP_EPOCHS = 20
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 30


@dataclass(frozen=True)
class Facts:
    """What is known of the data and the machine before anything is decoded."""

    images: int
    """Those that the source doesn't hold out itself."""
    classes: Mapping[str, int]
    """Those `images` by class."""
    side: int | None
    """Median of the shorter side in pixels, of a sample; None if no image of the sample says."""
    backbone: str | None
    """The best backbone whose weights are at hand; None if there is none."""
    why_none: str = ""
    """Why there is none, in words."""
    held_out: int = 0
    """Images that the source holds out."""
    has_several_labels: bool = False
    """Whether an image may have any number of labels; rare ones are then not weighted, as their thresholds do
    better and probabilities stay what they say."""


@dataclass(frozen=True)
class Choice:
    """Settings, and why."""

    settings: dict[str, Any]
    """Nested, as in a spec."""
    reasons: tuple[tuple[str, str], ...]
    """(topic, sentence), one a line."""


def choose(goal: Goal, facts: Facts) -> Choice:
    """Return the settings for `goal`: a probe for 'fast', everything that helps for 'best'."""
    is_small = facts.side is not None and facts.side < _SMALL_SIDE
    settings: dict[str, Any]
    reasons: tuple[tuple[str, str], ...]
    if facts.backbone is None:
        settings, reasons = _from_scratch(goal, facts, is_small)
    elif is_small and goal != "fast":
        settings, reasons = _finetuned(goal, facts)
    else:
        settings, reasons = _probed(facts, is_small)
    weighted = _weighted(facts)
    if weighted:
        settings.setdefault("train", {})["class_weights"] = "balanced"
    size = f"about {facts.side} px" if facts.side is not None else "of unknown size"
    found = f"{facts.images:,} images in {len(facts.classes)} classes, {size}"
    found += f", and {facts.held_out:,} held out" if facts.held_out else ""
    return Choice(settings, (("data", found), *reasons, ("classes", _of_classes(facts, weighted))))


def _probed(facts: Facts, is_small: bool) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    is_fitted = facts.images * len(facts.classes) <= _MOST_FITTED
    train: dict[str, Any] = {"epochs": 1, "finetune": {"probe": "logistic", "frozen_epochs": 1}}
    how = "logistic regression on its features, its penalty chosen by cross-validation on training images"
    if not is_fitted:
        train = {"epochs": _STEP_EPOCHS, "finetune": {"probe": "steps", "frozen_epochs": _STEP_EPOCHS}}
        how = f"{_STEP_EPOCHS} epochs on its cached features: too many images for logistic regression"
    why = (
        "the images are small, and fine-tuning would be more accurate"
        if is_small
        else "its features suit images of this size"
    )
    return _pretrained(facts, train, _photo_data()), (
        ("model", f"{facts.backbone} with pretrained weights, frozen, at {_PHOTO_SIZE} px: {why}"),
        ("training", how),
    )


def _finetuned(goal: Goal, facts: Facts) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    images = _FINETUNE_IMAGES * (3 if goal == "best" else 1)
    epochs = max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, round(images / facts.images)))
    train = {
        "epochs": 1 + epochs,
        "global_batch_size": 32,
        "label_smoothing": 0.1,
        "finetune": {
            "probe": "logistic",
            "frozen_epochs": 1,
            "backbone_rate": 1.0,
        },
    }
    settings = _pretrained(facts, train, {"image_size": _SMALL_SIZE, "interpolation": "bicubic"})
    settings["augment"] = {"flip": "horizontal"}
    settings["optimizer"] = {
        "name": "adamw", "learning_rate": 0.0003, "weight_decay": 0.01, "schedule": "cosine",
        "warmup_epochs": 0.5,
    }  # fmt: skip
    return settings, (
        ("model", f"{facts.backbone} with pretrained weights, fine-tuned at {_SMALL_SIZE} px"),
        (
            "training",
            f"{epochs} epochs of all weights: features of a frozen backbone are weak for such small images",
        ),
        ("augmentation", "mirrored at random"),
    )


def _from_scratch(
    goal: Goal, facts: Facts, is_small: bool
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    size = 32 if is_small and (facts.side or 0) <= 40 else 64 if is_small else 128
    epochs = {"fast": 15, "auto": 40, "best": 100}[goal]
    augment: dict[str, Any] = {"flip": "horizontal", "crop": {"scale": [0.5, 1.0]}}
    settings = {
        "model": {"family": "residual", **({"stem_stride": 1} if is_small else {})},
        "data": {"image_size": size},
        "augment": augment,
        "optimizer": {"name": "adamw", "weight_decay": 0.05, "schedule": "cosine", "warmup_epochs": 1.0},
        "train": {"epochs": epochs, "ema_decay": 0.99},
    }
    return settings, (
        ("model", f"a residual network from scratch at {size} px: {facts.why_none}"),
        ("training", f"{epochs} epochs"),
        ("augmentation", "mirrored and cropped at random"),
    )


def _pretrained(facts: Facts, train: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"family": "pretrained", "backbone": facts.backbone}, "data": data, "train": train}


def _photo_data() -> dict[str, Any]:
    return {
        "image_size": _PHOTO_SIZE,
        "resize": "crop",
        "crop_fraction": _PHOTO_FRACTION,
        "interpolation": "bicubic",
    }


def _weighted(facts: Facts) -> bool:
    counts = [count for count in facts.classes.values() if count]
    is_unequal = bool(counts) and max(counts) > _UNEQUAL * min(counts)
    return is_unequal and not facts.has_several_labels


def _of_classes(facts: Facts, weighted: bool) -> str:
    counts = sorted(facts.classes.items(), key=lambda pair: pair[1])
    if facts.has_several_labels:
        return "any number an image, not weighted: each label gets a threshold of its own"
    if not weighted:
        return "about equal in size, so they are not weighted"
    (small, fewest), (large, most) = counts[0], counts[-1]
    return f"weighted, as {large} has {most:,} images and {small} {fewest:,}"
