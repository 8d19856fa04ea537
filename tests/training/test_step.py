"""The train step: its results on one and two replicas, with XLA and in bfloat16."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_training import SMALL, dark_and_light, learner_for

from trainer.augment.transforms import MIX_DRAWS, EpochView, draw_numbers, mix_images
from trainer.data.dataset import Dataset
from trainer.distributed.devices import choose_precision, choose_xla, find_cluster
from trainer.errors import UsageError
from trainer.spec import load_spec
from trainer.training.prefetch import BatchPrefetcher
from trainer.training.step import TrainStep, class_weights, replica_share


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


def test_train_step_equals_train_on_batch_of_keras(dataset: Dataset) -> None:
    spec = load_spec(
        settings=[*SMALL, "model={family: plain, filters: [4], dense_units: [8]}", "optimizer.name=rmsprop"]
    )
    learner, twin = learner_for(spec, dataset), learner_for(spec, dataset)
    block = next(BatchPrefetcher(dataset.train, 8, spec.seed).blocks(0, 1))
    images, labels = block.images[0], block.labels[0]
    (sums,) = TrainStep(learner, spec, np.ones(2, np.float32), find_cluster()).run(block, EpochView(16, 16))

    twin.model.compile(
        keras.optimizers.RMSprop(0.001), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    loss = twin.model.train_on_batch(images.astype(np.float32), labels)
    assert sums.loss / sums.images == pytest.approx(float(loss), rel=1e-5)
    for ours, theirs in zip(learner.model.weights, twin.model.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_clipping_uses_the_global_norm_and_smoothing_equals_keras(dataset: Dataset) -> None:
    spec = load_spec(
        settings=[
            *SMALL,
            "model={family: plain, filters: [4]}",
            "optimizer={name: sgd, learning_rate: 1.0, clip_norm: 0.01}",
            "train.label_smoothing=0.2",
        ]
    )
    learner = learner_for(spec, dataset)
    before = [weight.numpy() for weight in learner.model.weights]
    block = next(BatchPrefetcher(dataset.train, 8, 0).blocks(0, 1))
    logits = learner.model(tf.cast(block.images[0], tf.float32))
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)(
        tf.one_hot(block.labels[0], 2), logits
    )
    (sums,) = TrainStep(learner, spec, np.ones(2, np.float32), find_cluster()).run(block, EpochView(16, 16))
    assert sums.loss / sums.images == pytest.approx(float(expected), rel=1e-5)
    moved = [weight.numpy() - old for weight, old in zip(learner.model.weights, before, strict=True)]
    assert np.sqrt(sum(np.sum(np.square(change)) for change in moved)) == pytest.approx(0.01, rel=1e-3)


def test_each_part_of_a_mixed_image_has_the_loss_and_weight_of_its_label(dataset: Dataset) -> None:
    settings = ["augment.mixup=1.0", "train.label_smoothing=0.1", "train.precision=float32"]
    spec = load_spec(settings=[*SMALL, *settings])
    block = next(BatchPrefetcher(dataset.train, 8, 0).blocks(0, 1))
    weights = np.array([1.0, 3.0], np.float32)
    (sums,) = TrainStep(learner_for(spec, dataset), spec, weights, find_cluster()).run(
        block, EpochView(16, 16)
    )
    images, labels = tf.cast(block.images[0], tf.float32), block.labels[0]
    draws = draw_numbers(spec.seed + (1 << 40), tf.constant(0, tf.int64), len(labels))
    mixed, partners, shares = mix_images(images, draws[:, MIX_DRAWS], spec.augment)
    logits = learner_for(spec, dataset).model(mixed, training=True)
    smoothed = tf.one_hot(labels, 2) * 0.9 + 0.05
    own, others = (
        tf.nn.softmax_cross_entropy_with_logits(tf.gather(smoothed, rows), logits) * weights[labels[rows]]
        for rows in (np.arange(8), partners.numpy())
    )
    expected = tf.reduce_sum(shares * own + (1 - shares) * others)
    assert sums.loss == pytest.approx(float(expected), rel=1e-4)
    assert float(tf.reduce_min(shares)) < 0.9


def test_class_weights_multiply_the_loss_of_their_class(dataset: Dataset) -> None:
    counts = np.array([30, 10])
    names = ("dark", "light")
    np.testing.assert_allclose(class_weights("none", names, counts), [1, 1])
    np.testing.assert_allclose(class_weights("balanced", names, counts), [40 / 60, 2.0])
    np.testing.assert_allclose(class_weights({"light": 3.0}, names, counts), [1, 3])
    spec = load_spec(settings=SMALL)
    block = next(BatchPrefetcher(dataset.train, 8, 0).blocks(0, 1))
    of_all, of_dark, of_light = (
        TrainStep(learner_for(spec, dataset), spec, np.array(weights, np.float32), find_cluster())
        .run(block, EpochView(16, 16))[0]
        .loss
        for weights in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0])
    )
    assert of_all == pytest.approx(of_dark + of_light, rel=1e-5)
    logits = learner_for(spec, dataset).model(tf.cast(block.images[0], tf.float32), training=True)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(block.labels[0], logits).numpy()
    assert of_light == pytest.approx(losses[block.labels[0] == 1].sum(), rel=1e-4)


@pytest.mark.engine
def test_steps_on_two_replicas_equal_those_on_one() -> None:
    command, tests = [sys.executable, "-m", "helpers.two_replicas"], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    for name in ("plain", "augmented", "airbench"):
        assert differences[name]["images"] == [7.0] * 4 + [1.0]
        assert differences[name]["loss"] < 1e-4
        assert differences[name]["weights"] < 1e-5
    assert differences["device cache"] == 0.0
    assert differences["predictions"] < 1e-6


def test_auto_precision_and_xla_depend_on_the_devices() -> None:
    cluster = find_cluster()
    assert choose_precision("bfloat16", cluster) == "bfloat16"
    assert choose_precision("auto", cluster) == ("bfloat16" if cluster.has_bfloat16 else "float32")
    assert choose_xla(True, cluster)
    assert not choose_xla(False, cluster)
    assert choose_xla("auto", cluster) == (cluster.device_kind == "GPU")


def losses_of(dataset: Dataset, *settings: str) -> list[float]:
    spec = load_spec(settings=[*SMALL, *settings])
    train_step = TrainStep(learner_for(spec, dataset), spec, np.ones(2, np.float32), find_cluster())
    block = next(BatchPrefetcher(dataset.train, 8, 0).blocks(0, 3))
    return [sums.loss for sums in train_step.run(block, EpochView(16, 16))]


@pytest.mark.engine
@pytest.mark.parametrize(
    "random",
    [
        [
            "augment={crop: {scale: [0.3, 1.0]}, flip: both, brightness: 0.2, saturation: 0.3, hue: 0.1}",
            "model={family: plain, filters: [4]}",
        ],
        ["augment={erase: 0.5, mixup: 0.5, cutmix: 0.5, noise: 0.1}", "model={family: plain, filters: [4]}"],
        ["model={family: residual, stem_filters: 4, filters: [4], blocks: [2], stochastic_depth: 0.5}"],
        ["model={family: plain, filters: [4], dense_units: [32], dropout: 0.5}"],
    ],
    ids=["augmentation", "mixing", "stochastic depth", "dropout"],
)
def test_random_numbers_are_the_same_with_xla(dataset: Dataset, random: list[str]) -> None:
    random = [*random, "train.precision=float32"]
    plain, compiled = (losses_of(dataset, *random, f"train.xla={on}") for on in ("false", "true"))
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert losses_of(dataset, *random, "seed=1") != pytest.approx(plain, rel=1e-3)  # depends on the seed


def test_step_with_xla_or_in_bfloat16_is_close_to_the_plain_step(dataset: Dataset) -> None:
    block = next(BatchPrefetcher(dataset.train, 8, 0).blocks(0, 1))
    model = "model={family: plain, filters: [4]}"
    losses = {
        name: losses_of(dataset, model, setting)[0]
        for name, setting in {
            "plain": "train.xla=false",
            "xla": "train.xla=true",
            "bf16": "train.precision=bfloat16",
        }.items()
    }
    turned = load_spec(settings=[*SMALL, "augment.rotate_degrees=10.0"])
    as_on_gpu = replace(find_cluster(), device_kind="GPU")  # where `auto` enables XLA
    train_step = TrainStep(learner_for(turned, dataset), turned, np.ones(2, np.float32), as_on_gpu)
    assert not train_step.uses_xla
    assert np.isfinite(train_step.run(block, EpochView(16, 16))[0].loss)  # XLA has no kernel for rotation
    assert losses["xla"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=5e-2)


def test_share_of_a_core_has_a_static_shape() -> None:
    """A TPU core gets its replica index only at run time, while XLA needs static shapes."""
    rows = tf.reshape(tf.range(32), [16, 2])

    @tf.function(jit_compile=True)
    def share(replica: tf.Tensor) -> tf.Tensor:
        return replica_share(replica, 4, [rows])[0]

    parts = [share(tf.constant(replica)).numpy().tolist() for replica in range(4)]
    assert [row for part in parts for row in part] == rows.numpy().tolist()
    uneven = [replica_share(replica, 4, [rows[:13]])[0].numpy().tolist() for replica in range(4)]
    assert [row for part in uneven for row in part] == rows[:13].numpy().tolist()
    assert [len(part) % 2 for part in uneven] == [0, 0, 0, 1]  # pairs stay together


def test_rotation_is_rejected_on_a_tpu(dataset: Dataset) -> None:
    spec = load_spec(settings=[*SMALL, "augment.rotate_degrees=5.0"])
    like_a_tpu = replace(find_cluster(), device_kind="TPU")
    with pytest.raises(UsageError, match="cannot rotate images"):
        TrainStep(learner_for(spec, dataset), spec, np.ones(2, np.float32), like_a_tpu)
