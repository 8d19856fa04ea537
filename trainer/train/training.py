"""Entry point of the training loop for other packages."""

from __future__ import annotations

from collections.abc import Callable

from trainer.data.dataset import Dataset
from trainer.distributed.devices import Cluster
from trainer.spec import RunSpec
from trainer.train.async_checkpointer import AsyncCheckpointer
from trainer.train.features import Features
from trainer.train.learner import Learner
from trainer.train.loop import Loop, Validate
from trainer.train.observer import Observer
from trainer.train.result import TrainResult


def train(
    learner: Learner,
    dataset: Dataset,
    spec: RunSpec,
    cluster: Cluster,
    saver: AsyncCheckpointer,
    observer: Observer,
    validate: Validate,
    is_stopped: Callable[[], bool] = lambda: False,
    features: Features | None = None,
) -> TrainResult:
    """Train `learner` on `dataset`, checkpointing with `saver`; see `Loop`.

    features: those of a backbone that is frozen at first; None without such a backbone, or to disable the
    feature cache.

    Raises DivergedError, the error of a failed save, and StoppedError once `is_stopped` returns True and the
    checkpoint is complete.
    """
    return Loop(learner, dataset, spec, cluster, saver, observer, validate, is_stopped, features).run()
