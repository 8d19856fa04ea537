"""Settings chosen from the data and the machine, for the recipes `auto`, `fast` and `best`.

Pure functions of a few facts: the same data on the same kind of machine give the same settings. Settings of
the user take precedence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.spec.pixels import format_size
from trainer.spec.schema import DataSpec

Goal = Literal["auto", "fast", "best"]

_SMALL_SIDE = 96
"""Images with fewer pixels per side are upscaled for a backbone that was trained on photos of 224 pixels."""
_SMALL_SIZE = 128
_PHOTO_SIZE, _PHOTO_FRACTION = 224, 0.875
MOST_FITTED = 15_000_000
"""Maximum images times classes for logistic regression; above it the head is trained with gradient steps."""
_UNEQUAL = 1.5
"""Ratio of the largest to the smallest class above which classes are weighted."""
_FINETUNE_IMAGES = 45_000
"""Images processed over all epochs of fine-tuning on a CPU."""
_LAST_STAGE_EPOCHS = 4
_LAST_STAGE_IMAGES = 400_000
"""Images processed over these epochs, two hours on two cores; at least one epoch."""
_STEP_EPOCHS = 20
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 30
_WIDTH = 1280
"""Features of EfficientNet per image, float32."""


@dataclass(frozen=True)
class Facts:
    """Facts about the data and the machine that are known before images are decoded."""

    images: int
    """Number of images that the source does not hold out itself."""
    classes: Mapping[str, int]
    """Number of these `images` per class."""
    side: int | None
    """Median of the shorter side in pixels, from a sample; None if no sampled image has a readable size."""
    backbone: str | None
    """Best backbone whose weights are available; None if there is none."""
    why_none: str = ""
    """Reason why there is none, as a phrase."""
    held_out: int = 0
    """Number of images that the source holds out."""
    has_several_labels: bool = False
    """Whether images are multi-label. Rare labels are then not weighted: a threshold per label works better
    and keeps the probabilities calibrated.
    """
    user_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the user, by dotted key."""


@dataclass(frozen=True)
class Choice:
    """Chosen settings and the reasons for them."""

    settings: dict[str, Any]
    """Nested, as in a spec."""
    reasons: tuple[tuple[str, str], ...]
    """(topic, sentence) pairs, one per output line."""


def choose(goal: Goal, facts: Facts) -> Choice:
    """Return the settings for `goal`: 'fast' trains only the head, 'best' favors accuracy.

    They are compatible with the settings of the user, and the reasons describe both.
    """
    is_small = facts.side is not None and facts.side < _SMALL_SIDE
    settings: dict[str, Any]
    reasons: tuple[tuple[str, str], ...]
    if facts.backbone is None:
        settings, reasons = _from_scratch(goal, facts, is_small)
    elif is_small and goal != "fast":
        settings, reasons = _finetuned(goal, facts)
    elif goal == "best" and (epochs := _last_stage_epochs(facts)):
        settings, reasons = _finetuned_last_stage(facts, epochs)
    else:
        settings, reasons = _probed(facts, is_small)
    is_weighted = _is_weighted(facts)
    if is_weighted:
        settings.setdefault("train", {})["class_weights"] = "balanced"
    _drop_conflicts(settings, facts.user_settings)
    size = f"about {facts.side} px" if facts.side is not None else "of unknown size"
    data = f"{facts.images:,} images in {len(facts.classes)} classes, {size}"
    data += f", {facts.held_out:,} more held out" if facts.held_out else ""
    return Choice(settings, (("data", data), *reasons, ("classes", _classes_text(facts, is_weighted))))


def _probed(facts: Facts, is_small: bool) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    epochs = facts.user_settings.get("train.epochs")
    is_fitted = facts.images * len(facts.classes) <= MOST_FITTED and (epochs or 1) == 1
    train: dict[str, Any] = {"epochs": 1, "finetune": {"probe": "logistic", "frozen_epochs": 1}}
    method = "logistic regression on its features; cross-validation on training images chooses the penalty"
    if not is_fitted:
        epochs = epochs or _STEP_EPOCHS
        train = {"epochs": epochs, "finetune": {"probe": "steps", "frozen_epochs": epochs}}
        method = f"{epochs} epochs of the head {_features_text(facts)}"
    if any(key.startswith("train.finetune.") for key in facts.user_settings):
        method = "according to train.finetune"
    why = (
        "fine-tuning would be more accurate on small images, but slower"
        if is_small
        else "its features suit images of this size"
    )
    return _pretrained(facts, train, _photo_data()), (
        ("model", f"{facts.backbone} with pretrained weights, frozen, at {_size(facts, _PHOTO_SIZE)}: {why}"),
        ("training", method),
    )


def _last_stage_epochs(facts: Facts) -> int:
    """Return the epochs that fine-tune the last stage after a fitted head; 0 without a fit or epochs left."""
    user = facts.user_settings
    has_own_head = user.keys() & {"train.finetune", "train.finetune.probe", "train.finetune.frozen_epochs"}
    if has_own_head or facts.images * len(facts.classes) > MOST_FITTED:
        return 0
    affordable = max(1, min(_LAST_STAGE_EPOCHS, round(_LAST_STAGE_IMAGES / facts.images)))
    epochs = user.get("train.epochs")
    return int(user.get("train.finetune.last_stage_epochs", affordable if epochs is None else epochs - 1))


def _finetuned_last_stage(
    facts: Facts, last_stage_epochs: int
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    epochs = facts.user_settings.get("train.epochs") or 1 + last_stage_epochs
    finetune = {
        "probe": "logistic", "frozen_epochs": 1, "last_stage_epochs": last_stage_epochs, "backbone_rate": 0.1,
    }  # fmt: skip
    train = {"epochs": epochs, "global_batch_size": 32, "finetune": finetune}
    settings = _pretrained(facts, train, _photo_data())
    settings["augment"] = {"flip": "horizontal"}
    settings["optimizer"] = {
        "name": "adamw", "learning_rate": 0.0005, "weight_decay": 0.01, "schedule": "cosine",
    }  # fmt: skip
    phases = [f"{last_stage_epochs} of its last stage"]
    if whole_epochs := epochs - 1 - last_stage_epochs:
        phases.append(f"{whole_epochs} of all weights")
    return settings, (
        ("model", f"{facts.backbone} with pretrained weights at {_size(facts, _PHOTO_SIZE)}"),
        ("training", f"logistic regression on its features, then epochs: {', '.join(phases)}"),
        ("augmentation", "random mirroring"),
    )


def _features_text(facts: Facts) -> str:
    mib, limit_mib = (
        facts.images * _WIDTH * 4 >> 20,
        facts.user_settings.get("data.cache_mib", DataSpec().cache_mib),
    )
    if mib <= limit_mib:
        return "on cached features"
    return f"on features computed in each epoch; to cache them, set data.cache_mib to {mib}"


def _size(facts: Facts, chosen: int) -> str:
    return format_size(facts.user_settings.get("data.image_size", chosen))


def _drop_conflicts(settings: dict[str, Any], user_settings: Mapping[str, Any]) -> None:
    """Remove from `settings` what is incompatible with the settings of the user."""
    if user_settings.get("data.resize", "crop") != "crop":
        settings["data"].pop("crop_fraction", None)
    if user_settings.get("augment.translate_pixels"):
        settings.get("augment", {}).pop("crop", None)
    optimizer = settings.get("optimizer", {})
    if user_settings.get("optimizer.name", optimizer.get("name")) != optimizer.get("name"):
        settings.pop("optimizer", None)  # the learning rate was chosen for the other optimizer


def _finetuned(goal: Goal, facts: Facts) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    images = _FINETUNE_IMAGES * (3 if goal == "best" else 1)
    epochs = max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, round(images / facts.images)))
    epochs = facts.user_settings.get("train.epochs", 1 + epochs)
    train = {
        "epochs": epochs,
        "validate_every_epochs": max(1, round(facts.held_out / facts.images)),
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
        ("model", f"{facts.backbone} with pretrained weights, fine-tuned at {_size(facts, _SMALL_SIZE)}"),
        (
            "training",
            f"{epochs - 1} epochs of all weights: frozen features work poorly on such small images",
        ),
        ("augmentation", "random mirroring"),
    )


def _from_scratch(
    goal: Goal, facts: Facts, is_small: bool
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    size = 32 if is_small and (facts.side or 0) <= 40 else 64 if is_small else 128
    epochs = facts.user_settings.get("train.epochs", {"fast": 15, "auto": 40, "best": 100}[goal])
    augment: dict[str, Any] = {"flip": "horizontal", "crop": {"scale": [0.5, 1.0]}}
    settings = {
        "model": {"family": "residual", **({"stem_stride": 1} if is_small else {})},
        "data": {"image_size": size},
        "augment": augment,
        "optimizer": {"name": "adamw", "weight_decay": 0.05, "schedule": "cosine", "warmup_epochs": 1.0},
        "train": {"epochs": epochs, "ema_decay": 0.99},
    }
    return settings, (
        ("model", f"a residual network from scratch at {_size(facts, size)}: {facts.why_none}"),
        ("training", f"{epochs} epochs"),
        ("augmentation", "random mirroring and crops"),
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


def _is_weighted(facts: Facts) -> bool:
    counts = [count for count in facts.classes.values() if count]
    is_unequal = bool(counts) and max(counts) > _UNEQUAL * min(counts)
    return is_unequal and not facts.has_several_labels


def _classes_text(facts: Facts, is_weighted: bool) -> str:
    counts = sorted(facts.classes.items(), key=lambda pair: pair[1])
    if facts.has_several_labels:
        return "several labels per image, not weighted; each label has its own threshold"
    if not is_weighted:
        return "similar in size, not weighted"
    (small, fewest), (large, most) = counts[0], counts[-1]
    return f"weighted: {large} has {most:,} images, {small} only {fewest:,}"
