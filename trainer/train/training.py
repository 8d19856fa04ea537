"""Entry point of the training loop for other packages."""

from __future__ import annotations

from collections.abc import Callable

from trainer.cluster import Cluster
from trainer.data.dataset import Dataset
from trainer.spec import RunSpec
from trainer.train.features import Features
from trainer.train.learner import Learner
from trainer.train.loop import Loop, Validate
from trainer.train.observer import Observer
from trainer.train.result import TrainResult
from trainer.train.saver import Saver


def train(
    learner: Learner,
    dataset: Dataset,
    spec: RunSpec,
    cluster: Cluster,
    saver: Saver,
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
