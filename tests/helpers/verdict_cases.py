"""Synthetic predictions and training histories as inputs of a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.evaluate.metrics import Predictions
from trainer.report.verdict import Verdict, judge

Rows = list[dict[str, Any]]


def answers(split: str, classes: dict[str, tuple[int, float]], sure: float = 0.55) -> Predictions:
    """Return predictions for a split; `classes` maps names to (images, recall).

    A wrong prediction is the next class with probability `sure`; a right one has probability 0.97.
    """
    names = tuple(classes)
    labels = np.repeat(np.arange(len(names)), [images for images, _ in classes.values()])
    right = np.concatenate(
        [np.arange(images) < round(images * recall) for images, recall in classes.values()]
    )
    answered = np.where(right, labels, (labels + 1) % len(names))
    confidence = np.where(right, 0.97, sure)
    rows = np.repeat((1 - confidence)[:, None] / (len(names) - 1), len(names), axis=1)
    rows[np.arange(len(labels)), answered] = confidence
    paths = tuple(f"{split}/{number}.jpg" for number in range(len(labels)))
    return Predictions(split, paths, labels.astype(np.int32), rows, names)


def both(
    train: float, held: float, count: int = 1000, held_out: str = "validation"
) -> dict[str, Predictions]:
    """Return predictions for two balanced classes; recall of cats is the lower one."""
    half = count // 2
    right = round(count * held)
    cats = max(0, right // 2 - half // 100) if held < 1 else half
    return {
        "train": answers("train", {"cats": (1000, train), "dogs": (1000, train)}),
        held_out: answers(held_out, {"cats": (half, cats / half), "dogs": (half, (right - cats) / half)}),
    }


def flat(accuracy: float = 0.92, epochs: int = 20) -> Rows:
    """Return a history with a flat validation accuracy."""
    noise = np.random.default_rng(0).normal(size=epochs) * 0.004
    return [
        {
            "epoch": epoch,
            "learning_rate": 0.001,
            "train/loss": 0.2,
            "validation/loss": 0.3,
            "validation/accuracy": accuracy + float(noise[epoch - 1]),
        }
        for epoch in range(1, epochs + 1)
    ]


def rising(step: float = 0.02, epochs: int = 10) -> Rows:
    """Return a history whose validation accuracy rises by `step` per epoch."""
    return [row | {"validation/accuracy": 0.6 + step * row["epoch"]} for row in flat(epochs=epochs)]


def verdict(
    train: float,
    held: float,
    history: Rows | None = None,
    count: int = 1000,
    settings: dict[str, Any] | None = None,
) -> Verdict:
    rows = flat() if history is None else history
    return judge(both(train, held, count), rows, "validation", settings or {})


def unequal(common: float, rare: float) -> dict[str, Predictions]:
    """Return predictions for two classes at 95:5, given the recall of both."""
    return {
        "train": answers("train", {"common": (1900, common), "rare": (100, rare)}),
        "validation": answers("validation", {"common": (950, common), "rare": (50, rare)}),
    }


def ten(last: float, held: float = 0.9, images: int = 20) -> dict[str, Predictions]:
    """Return predictions for ten classes of equal size; the last has recall `last`."""
    classes = {f"class {number}": (images, held) for number in range(9)}
    return {
        "train": answers("train", dict.fromkeys([*classes, "last"], (100, 0.93))),
        "validation": answers("validation", classes | {"last": (images, last)}),
    }


def copied(count: int) -> dict[str, Any]:
    """Return a dataset.json in which the first `count` validation images are copies of training images."""
    pairs = [
        [
            {"split": split, "label": "cats", "name": f"{split}/{number}.jpg"}
            for split in ("train", "validation")
        ]
        for number in range(count)
    ]
    return {"duplicates_across_splits": {"count": count, "images": pairs}}


def creeping(first: float, last: float, epochs: int = 10, rate: float = 0.001) -> Rows:
    """Return a history whose train loss goes from `first` to `last` in equal steps."""
    losses = np.linspace(first, last, epochs)
    return [
        row | {"train/loss": float(loss), "learning_rate": rate}
        for row, loss in zip(flat(0.5, epochs), losses, strict=True)
    ]
