"""Training against the bare compiled step; used by bench.py.

In: the data and a precision. Out: two functions that measure images/s, one of the real
loop's feed and steps, one of the least code that trains the same model: one batch that
stays in memory, one compiled function, no augmentation, no bookkeeping.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainer.cli.app import cache_folder
from trainer.cluster import find_cluster
from trainer.data.dataset import load_dataset
from trainer.data.progress import SilentProgress
from trainer.spec import RunSpec, load_spec
from trainer.train import build_learner
from trainer.train.feed import Feed
from trainer.train.step import Stepper

_SECONDS = 15.0


def prepare(folder: Path, precision: str) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return how to measure training, and how to measure the bare step, in images/s."""
    spec = load_spec(
        recipe="cats-vs-dogs",
        settings=[f"train.precision={precision}"],
        overrides={"data.source": str(folder)},
    )
    dataset = load_dataset(spec.data, cache_folder(), SilentProgress(), lambda found: None)
    return _training(spec, dataset), _bare_step(spec, dataset)


def _training(spec: RunSpec, dataset: object) -> Callable[[], float]:
    cluster = find_cluster()
    split = dataset.train
    feed = Feed(split, spec.train.global_batch_size, spec.seed)
    learner = build_learner(spec, len(dataset.class_names), feed.steps_per_epoch, cluster)
    stepper = Stepper(learner, spec, np.ones(len(dataset.class_names), np.float32), cluster)
    feed.block_steps = 4

    def measure() -> float:
        images, started = 0, time.perf_counter()
        for block in feed.blocks(0, 1_000_000):
            stepper.run(block, spec.data.image_size)
            images += block.labels.size
            if time.perf_counter() - started > _SECONDS:
                break
        return images / (time.perf_counter() - started)

    measure()  # compiles
    return measure


def _bare_step(spec: RunSpec, dataset: object) -> Callable[[], float]:
    cluster = find_cluster()
    learner = build_learner(spec, len(dataset.class_names), 100, cluster)
    model, optimizer = learner.model, keras.optimizers.RMSprop(0.001)
    optimizer.build(model.trainable_variables)
    rows = np.arange(spec.train.global_batch_size)
    images = tf.constant(dataset.train.pixels.take(rows), tf.float32)
    labels = tf.constant(dataset.train.labels[rows])

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    def measure() -> float:
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < _SECONDS:
            step().numpy()
            steps += 1
        return steps * len(rows) / (time.perf_counter() - started)

    measure()  # compiles
    return measure
