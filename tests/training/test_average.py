"""Exponential moving average of the weights: its formula, and its use in the final model."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_training import SMALL, dark_and_light, do_train, learner_for

from trainer.augment.transforms import EpochView
from trainer.data.dataset import Dataset
from trainer.distributed.devices import find_cluster
from trainer.spec import load_spec
from trainer.training.learner import WeightAverage
from trainer.training.prefetch import BatchPrefetcher
from trainer.training.step import TrainStep


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


def test_average_follows_the_weights_and_fills_the_inference_model(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=[*SMALL, "train.epochs=1", "train.ema_decay=0.5"])
    learner, _ = do_train(spec, dataset, tmp_path)
    assert learner.average is not None
    for shadow, weight in zip(learner.average.shadows, learner.inference_model.weights, strict=True):
        np.testing.assert_array_equal(shadow, weight)
    assert any(
        not np.array_equal(shadow, weight)
        for shadow, weight in zip(learner.average.shadows, learner.model.weights, strict=True)
    )


def test_average_equals_the_formula() -> None:
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    (weight,) = model.weights
    weight.assign([[0.0]])
    average = WeightAverage(model, 0.15)
    expected = 0.0
    for step, value in enumerate((1.0, 3.0, -2.0)):
        weight.assign([[value]])
        average.update(tf.constant(step, tf.int64), model.weights)
        decay = min(0.15, (1 + step) / (10 + step))  # 0.1, 0.15, 0.15
        expected = decay * expected + (1 - decay) * value
        assert float(average.shadows[0][0, 0]) == pytest.approx(expected, rel=1e-6)


def test_train_step_updates_the_average(dataset: Dataset) -> None:
    spec = load_spec(settings=[*SMALL, "train.ema_decay=0.9"])
    learner = learner_for(spec, dataset)
    assert learner.average is not None
    before = [shadow.numpy() for shadow in learner.average.shadows]
    train_step = TrainStep(learner, spec, np.ones(2, np.float32), find_cluster())
    train_step.run(next(BatchPrefetcher(dataset.train, 8, 0).blocks(0, 1)), EpochView(16, 16))
    for old, shadow, weight in zip(before, learner.average.shadows, learner.model.weights, strict=True):
        np.testing.assert_allclose(shadow, old + 0.9 * (weight.numpy() - old), rtol=1e-5, atol=1e-6)
