"""Synthetic multi-label predictions."""

from __future__ import annotations

import numpy as np

from trainer.evaluate.label_predictions import MultiLabelPredictions, multilabel_predictions

NAMES = ("sun", "sea, calm", '=x"y')
SHARES = (0.5, 0.3, 0.1)


def answers(
    skill: float, count: int = 200, seed: int = 0, split: str = "validation"
) -> MultiLabelPredictions:
    """Return predictions that improve with `skill`; 0 is random. Equal seeds give equal labels."""
    truth = np.random.default_rng(seed).random((count, len(NAMES))) < SHARES
    noise = np.random.default_rng([seed, round(100 * skill)]).normal(size=truth.shape)
    logits = skill * (truth - 0.5) + noise
    names = tuple(f"{split}/{number:04d}.jpg" for number in range(count))
    return multilabel_predictions(split, names, truth.astype(np.int32), 1 / (1 + np.exp(-logits)), NAMES)
