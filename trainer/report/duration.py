"""Advice on the training duration and the learning rate.

The functions return sentences and settings that can be pasted; none is a setting that the run already has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from trainer.report.case import Case, Judged
from trainer.report.history import find_best_epoch
from trainer.spec import USUAL_RATES, EarlyStoppingSpec

_LARGE_LOSS = 2.0
"""Multiple of the loss of guessing; a higher train loss in the first epoch means too high a learning rate."""
_SMALL_FALL = 0.02
"""Relative decrease of the train loss over a quarter of the epochs below which it has converged."""


def train_on(case: Judged) -> Iterator[str]:
    """Yield advice to train longer if the train loss was still falling clearly; to fine-tune, for a probe."""
    if case.is_probe:
        yield fine_tuning(case)
        return
    loss = case.losses
    lately = max(1, len(loss) // 4)
    if 0 < len(loss) < 3 or (len(loss) and loss[-1] < (1 - _SMALL_FALL) * loss[-1 - lately]):
        falling = "The train loss was still falling: train longer, " if len(loss) > 1 else "Train longer: "
        yield f"{falling}{more_epochs(case)}."


def fine_tuning(case: Judged) -> str:
    """Return advice to fine-tune the frozen backbone after logistic regression."""
    return "Fine-tune the backbone: --set train.epochs=10 --set optimizer.learning_rate=0.0003."


def more_epochs(case: Judged) -> str:
    """Return the setting that lets the run train longer: that of the limit which ended this training."""
    planned, done = case.setting("train.epochs"), len(case.history)
    planned = planned if isinstance(planned, int) else done or 10
    if 0 < done < planned:
        budget = case.setting("train.time_budget_seconds")
        if _ran_out_of_patience(case) or (case.setting("train.early_stopping") and not budget):
            return f"--set train.early_stopping.patience_epochs={2 * _patience(case)}"
        if budget:
            return f"--set train.time_budget_seconds={2 * budget:g}"
    return f"--set train.epochs={max(10, 2 * planned)}"


def _patience(case: Judged) -> int:
    return int(case.setting("train.early_stopping.patience_epochs") or EarlyStoppingSpec().patience_epochs)


def _ran_out_of_patience(case: Judged) -> bool:
    """Return whether the best epoch is so far back that early stopping ended the training."""
    if not case.setting("train.early_stopping"):
        return False
    monitor = case.setting("train.early_stopping.monitor") or EarlyStoppingSpec().monitor
    best = find_best_epoch(case.history, case.held.split, monitor)
    return best is not None and best <= len(case.history) - _patience(case)


def keeps_best(case: Judged) -> bool:
    """Return whether the predictions are those of the best epoch, not of the last one."""
    keep, stopping = case.setting("train.keep"), case.setting("train.early_stopping")
    return keep == "best" or (keep in (None, "auto") and stopping is not None)


def another_rate(case: Case) -> Iterator[str]:
    """Yield a lower learning rate if the loss jumped or never fell, a higher one if it falls too slowly."""
    rate = case.setting("optimizer.learning_rate")
    usual = USUAL_RATES.get(str(case.setting("optimizer.name")))
    if not rate or usual is None or not len(case.losses):
        return
    loss = case.losses
    if rate > 0.1 * usual and loss[0] > _LARGE_LOSS * np.log(len(case.train.class_names)):
        lower = usual if rate > 2 * usual else rate / 10
        yield f"The train loss leapt up: take a smaller rate, --set optimizer.learning_rate={lower:.1g}."
    elif _is_creeping(loss) or (rate < usual / 5 and loss[-1] > 0.8 * loss[0]):
        higher = usual if rate < usual / 2 else 3 * rate
        yield f"The train loss hardly fell: take a larger rate, --set optimizer.learning_rate={higher:.1g}."
    elif loss[-1] > (1 - _SMALL_FALL) * loss[0]:
        lower = usual if rate > 2 * usual else rate / 3
        yield f"The train loss did not fall: take a smaller rate, --set optimizer.learning_rate={lower:.1g}."


def _is_creeping(loss: np.ndarray[Any, Any]) -> bool:
    """Return whether the loss falls steadily, but by less than a tenth in total."""
    if len(loss) < 4 or loss[-1] < 0.9 * loss[0] or loss.min() == loss.max():
        return False
    from scipy.stats import spearmanr  # slow import (1 s), not needed for short runs

    return bool(spearmanr(np.arange(len(loss)), loss).statistic < -0.9)
