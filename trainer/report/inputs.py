"""Inputs of a report, and their collection from a training result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer.data.items import Rejection
from trainer.evaluate.metrics import AnyPredictions
from trainer.report.drift import Drift
from trainer.spec import RunSpec, dump_shown_spec

if TYPE_CHECKING:  # they import TensorFlow, which reports of finished runs do not need
    from trainer.data.dataset import Dataset
    from trainer.evaluate.explain import Explanation
    from trainer.training import TrainResult

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """Everything that the report of a run shows."""

    title: str
    """Name of the run."""
    spec_yaml: str
    """The resolved spec, as YAML."""
    environment: Mapping[str, Any]
    """Content of environment.json; missing entries are not shown."""
    dataset: Mapping[str, Any]
    """Content of dataset.json: 'splits' is {split: {'images': n, 'classes': {class: n}}}."""
    rejected: Sequence[Rejection]
    history: Sequence[Mapping[str, Any]]
    """Rows of history.jsonl; held-out values may be missing from some rows."""
    predictions: Mapping[str, AnyPredictions]
    """By split: 'train' and the held-out splits."""
    metrics: Mapping[str, float]
    """By split/metric."""
    held_out: str
    """Split that the verdict is about: 'validation' or 'test'."""
    pictures: Callable[[str, npt.NDArray[np.int64]], Pixels]
    """Maps (split, indices [n]) to the network's input images, uint8 [n, height, width, channels]."""
    train_seconds: float
    ended: str = ""
    """Why training ended before its last epoch; empty if it did not."""
    keeps_best: bool = False
    """Whether the model is that of the best epoch, not of the last one."""
    drift: Drift | None = None
    """Differences from the data of the newest finished run; None unless it has the same source and other
    data."""
    explain: Callable[[Pixels], Explanation] | None = None
    """Maps an input of the network, uint8 [height, width, channels], to its explanation; None: no maps."""
    best_epoch: int = 0
    """From 1, as found during training; 0 if none was evaluated, then it is taken from the history."""


def report_inputs(
    title: str,
    spec: RunSpec,
    environment: dict[str, Any],
    dataset: Dataset,
    result: TrainResult,
    predictions: dict[str, AnyPredictions],
    metrics: dict[str, float],
    drift: Drift | None = None,
    explain: Callable[[Pixels], Explanation] | None = None,
) -> ReportInputs:
    """Return the inputs for the report of a training."""
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
        pictures=lambda split, rows: dataset.splits[split].pixels.gather(rows),
        train_seconds=result.seconds,
        ended=result.ended,
        keeps_best=spec.train.keeps_best,
        best_epoch=result.best_epoch,
        drift=drift,
        explain=explain,
    )
