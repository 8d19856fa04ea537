"""What a report is made from.

In: nothing, or a training and its results. Out: `ReportInputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer.data.items import Rejection
from trainer.metrics import AnyPredictions
from trainer.report.drift import Drift
from trainer.spec import RunSpec, dump_shown_spec

if TYPE_CHECKING:  # they load TensorFlow, and reports of finished runs need none
    from trainer.data.dataset import Dataset
    from trainer.train import TrainResult

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """All of a run that its report shows."""

    title: str
    """The run's name."""
    spec_yaml: str
    """The resolved spec."""
    environment: Mapping[str, Any]
    """As environment.json has it; whatever is missing is not shown."""
    dataset: Mapping[str, Any]
    """As dataset.json has it: 'splits' is {split: {'images': n, 'classes': {class: n}}}."""
    rejected: Sequence[Rejection]
    history: Sequence[Mapping[str, Any]]
    """As history.jsonl has it; held-out values may be missing from some rows."""
    predictions: Mapping[str, AnyPredictions]
    """By split: 'train' and the held-out ones."""
    metrics: Mapping[str, float]
    """By split/metric."""
    held_out: str
    """The split that the verdict is about: 'validation' or 'test'."""
    pictures: Callable[[str, npt.NDArray[np.int64]], Pixels]
    """(split, indices [n]) to the images as the network sees them, uint8 [n, height, width, channels]."""
    train_seconds: float
    ended: str = ""
    """Why training ended before its last epoch; empty if it didn't."""
    keeps_best: bool = False
    """Whether the model is the best epoch's, not the last one's."""
    drift: Drift | None = None
    """How the data differ from those of the run before; None if they don't."""
    best_epoch: int = 0
    """From 1, as training found it; 0 if it looked at no epoch, and then the history tells."""


def report_inputs(
    title: str,
    spec: RunSpec,
    environment: dict[str, Any],
    dataset: Dataset,
    result: TrainResult,
    predictions: dict[str, AnyPredictions],
    metrics: dict[str, float],
    drift: Drift | None = None,
) -> ReportInputs:
    """Return what the report of a training shows."""
    return ReportInputs(
        title=title,
        spec_yaml=dump_shown_spec(spec),
        environment=environment,
        dataset=dataset.summary,
        rejected=dataset.rejected,
        history=result.history,
        predictions=predictions,
        metrics=metrics,
        held_out=dataset.held_out.name,
        pictures=lambda split, rows: dataset.splits[split].pixels.take(rows),
        train_seconds=result.seconds,
        ended=result.ended,
        keeps_best=spec.train.keeps_best,
        best_epoch=result.best_epoch,
        drift=drift,
    )
