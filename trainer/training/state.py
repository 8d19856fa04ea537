"""Progress counters of a training, as plain values.

`TrainState` is saved in each checkpoint as JSON, so that a restart continues with the sums of the epoch, the
best epoch, the remaining patience and the number of recoveries.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DivergedError
from trainer.spec import USUAL_RATES, EarlyStoppingSpec, OptimizerSpec
from trainer.training.step import Sums


@dataclass
class TrainState:
    """Progress of the training; updated at every step and serializable as JSON."""

    step: int = 0
    """Steps done."""
    loss_sum: float = 0.0
    hits: float = 0.0
    images: float = 0.0
    """Sums of the current epoch."""
    recoveries: int = 0
    """Number of recoveries from divergence."""
    best_epoch: int = 0
    """From 1; 0 if there is none yet."""
    best_score: float = -math.inf
    """Higher is better."""
    elapsed_seconds: float = 0.0
    """Training time of all attempts together."""
    ended: str = ""
    """Why training ended before its last epoch, in words; empty if it did not."""

    def add(self, steps: list[Sums]) -> None:
        """Add the sums of these steps."""
        for sums in steps:
            self.step += 1
            self.loss_sum += sums.loss
            self.hits += sums.hits
            self.images += sums.images

    def begin_epoch(self) -> None:
        """Reset the sums of the epoch."""
        self.loss_sum = self.hits = self.images = 0.0

    def means(self) -> tuple[float, float]:
        """Return loss and accuracy of the epoch so far."""
        return self.loss_sum / max(1.0, self.images), self.hits / max(1.0, self.images)

    def is_finite(self) -> bool:
        """Return whether the epoch's loss is finite."""
        return math.isfinite(self.loss_sum)

    def record(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TrainState:
        """Create an instance from the result of `record`."""
        return cls(**record)


def score(row: Mapping[str, Any], held_out: str, spec: EarlyStoppingSpec | None) -> float | None:
    """Return the score of an epoch's row, higher is better; None if the epoch was not validated."""
    # With multiple labels per image, the ranking is more informative than the share of faultless images.
    ranking = f"{held_out}/mean_average_precision"
    monitor = spec.monitor if spec else "accuracy"
    value = row.get(ranking if spec is None and ranking in row else f"{held_out}/{monitor}")
    if value is None:
        return None
    return -float(value) if monitor == "loss" else float(value)


def best_of(
    rows: Iterable[Mapping[str, Any]], epochs: Collection[int], held_out: str, spec: EarlyStoppingSpec | None
) -> tuple[int, float]:
    """Return the best of `epochs` by the rows of the history, and its score; 0 and -inf if there is none."""
    scores = {row["epoch"]: score(row, held_out, spec) for row in rows if row["epoch"] in epochs}
    known = [(value, -epoch) for epoch, value in scores.items() if value is not None]
    value, epoch = max(known, default=(-math.inf, 0))
    return -epoch, value


def is_out_of_patience(
    state: TrainState, epoch: int, spec: EarlyStoppingSpec | None, first_of_last_phase: int = 0
) -> bool:
    """Return whether the best epoch is `patience_epochs` or more ago.

    epoch: from 1. first_of_last_phase: number of epochs before the last phase. The patience starts again
    with the last phase, and no earlier phase ends the training.
    """
    if spec is None or not state.best_epoch:
        return False
    return max(state.best_epoch, first_of_last_phase) <= epoch - spec.patience_epochs


def error_of_divergence(epoch: int, recoveries: int, optimizer: OptimizerSpec) -> DivergedError:
    """Return the error for a loss that is still not finite after all recoveries."""
    return DivergedError(
        f"The loss is not a finite number in epoch {epoch}, even after {recoveries} restarts from the epoch "
        f"before, each with half the learning rate.",
        f"Train with a smaller learning rate: {_smaller_rate(optimizer)}.",
        received=f"{optimizer.learning_rate:g}",
    )


def error_without_checkpoint(folder: Path, optimizer: OptimizerSpec) -> DivergedError:
    """Return the error for a loss that is not finite while `folder` has no checkpoint to restore."""
    return DivergedError(
        f"The loss is not a finite number, and {folder} has no complete checkpoint to restore.",
        f"Start a run with another name and a smaller learning rate: {_smaller_rate(optimizer)}.",
        received=f"{optimizer.learning_rate:g}",
    )


def _smaller_rate(optimizer: OptimizerSpec) -> str:
    """Return the option for a tenth of the rate, or for the usual rate of the optimizer if that is lower."""
    lower = min(optimizer.learning_rate / 10, USUAL_RATES[optimizer.name])
    return f"--set optimizer.learning_rate={lower:.1g}"
