"""Training against the bare compiled step; used by bench.py.

Provides two functions that measure images/s: one of real training with its checkpoints, one of the minimal
code that trains the same model, with one batch in memory, one compiled function, no augmentation and no
bookkeeping.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainer.cli.environment import cache_folder
from trainer.data.dataset import Dataset
from trainer.data.load import load_dataset
from trainer.data.progress import SilentProgress
from trainer.data.sampler import steps_per_epoch
from trainer.distributed.devices import find_cluster
from trainer.errors import StoppedError
from trainer.spec import RunSpec, load_spec
from trainer.training import AsyncCheckpointer, CallReport, build_learner, train

_SECONDS = 15.0
_STEPS_BETWEEN_CHECKS = 4


def prepare(folder: Path, precision: str) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return functions that measure training and the bare step, in images/s."""
    spec = load_spec(
        recipe="cats-vs-dogs",
        # Without validation; checkpoints are saved far more often than in a normal run.
        settings=[
            f"train.precision={precision}",
            "train.epochs=1000",
            "train.validate_every_epochs=1000",
            "train.checkpoint.every_minutes=0.1",
        ],
        overrides={"data.source": str(folder)},
    )
    dataset = load_dataset(spec.data, cache_folder(), SilentProgress(), lambda rejected: None)
    return rate_of_training(spec, dataset), _bare_step(spec, dataset)


class _Watch:
    """Training observer that records the calls of the train step after the first epoch.

    The first epoch compiles the step for whole batches and for the short last one.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.calls: list[tuple[int, float]] = []

    def on_call(self, report: CallReport) -> None:
        if report.step >= self.steps_per_epoch:
            self.calls.append((report.step, time.perf_counter()))

    def on_epoch(self, row: object, epochs: int) -> None: ...

    def on_message(self, message: str) -> None: ...

    def seconds(self) -> float:
        return self.calls[-1][1] - self.calls[0][1] if self.calls else 0.0

    def rate(self, batch: int) -> float:
        """Return images/s between the first and the last recorded call."""
        return (self.calls[-1][0] - self.calls[0][0]) * batch / self.seconds()


def rate_of_training(spec: RunSpec, dataset: Dataset) -> Callable[[], float]:
    """Return a function that measures images/s of training, already compiled."""
    cluster = find_cluster()
    steps = steps_per_epoch(len(dataset.train.labels), spec.train.global_batch_size)
    learner = build_learner(spec, len(dataset.class_names), steps, cluster)

    def measure() -> float:
        watch = _Watch(steps)
        with (
            tempfile.TemporaryDirectory() as folder,
            AsyncCheckpointer(Path(folder, "checkpoints")) as checkpointer,
            suppress(StoppedError),
        ):
            train(
                learner, dataset, spec, cluster, checkpointer, watch, dict, lambda: watch.seconds() > _SECONDS
            )
        return watch.rate(spec.train.global_batch_size)

    measure()
    return measure


def _bare_step(spec: RunSpec, dataset: Dataset) -> Callable[[], float]:
    cluster = find_cluster()
    learner = build_learner(spec, len(dataset.class_names), 100, cluster)
    model, optimizer = learner.model, keras.optimizers.RMSprop(0.001)
    optimizer.build(model.trainable_variables)
    rows = np.arange(spec.train.global_batch_size)
    images = tf.constant(dataset.train.pixels.gather(rows), tf.float32)
    labels = tf.constant(dataset.train.labels[rows])

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return rate_of_steps(step, len(rows))


def rate_of_steps(step: Callable[[], tf.Tensor], size: int) -> Callable[[], float]:
    """Return a function that measures images/s of `step`, already compiled, with `size` images per call."""

    def measure() -> float:
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < _SECONDS:
            for _ in range(_STEPS_BETWEEN_CHECKS):
                loss = step()
            loss.numpy()
            steps += _STEPS_BETWEEN_CHECKS
        return steps * size / (time.perf_counter() - started)

    measure()
    return measure
