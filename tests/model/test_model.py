"""Model families, optimizer and schedule."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model import build_inference_model, build_model
from trainer.spec import AirbenchSpec, ModelSpec, OptimizerSpec, PlainSpec, ResidualSpec, load_spec
from trainer.training.optimizer import build_optimizer

SMALL = ResidualSpec(stem_filters=8, filters=(8, 16), blocks=(1, 1), stochastic_depth=0.3)
AIRBENCH = AirbenchSpec(filters=(8, 16), convolutions=3, dropout=0.2)


def pixels(count: int = 4, size: int = 32) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)), tf.float32)


def test_network_of_the_paper_has_its_layers_and_weights() -> None:
    spec = load_spec(recipe="cats-vs-dogs")
    model = build_model(spec.model, 2, spec.data.image_size)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [16, 32, 64, 1024]
    assert all(layer.kernel_size == (3, 3) for layer in convolutions)
    assert sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in model.layers) == 4
    # 3x3 kernels and biases, then one unit with 7 x 7 x 1024 weights and a bias.
    expected = 448 + 4640 + 18496 + 590848 + 7 * 7 * 1024 + 1
    assert model.count_params() == expected


def test_network_of_the_tutorial_has_its_number_of_weights() -> None:
    spec = load_spec(recipe="cifar10")
    assert build_model(spec.model, 10, 32).count_params() == 122_570


def test_sigmoid_unit_equals_two_softmax_logits_with_the_same_loss() -> None:
    model = build_model(PlainSpec(filters=(4,), binary_unit=True), 2, 16)
    logits = model(pixels(3, 16))
    unit = keras.Model(model.input, model.get_layer("unit").output)(pixels(3, 16))
    labels = tf.constant([0, 1, 1])
    np.testing.assert_allclose(tf.nn.softmax(logits)[:, 1], tf.sigmoid(unit)[:, 0], atol=1e-6)
    ours = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    theirs = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels[:, None], tf.float32), unit)[:, 0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("spec", [SMALL, AIRBENCH, PlainSpec(filters=(4, 8), dense_units=(8,), dropout=0.2)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_and_weights_are_float32_in_any_precision(spec: ModelSpec, precision: str) -> None:
    model = build_model(spec, 3, 32, precision)
    logits = model(pixels(), training=True)
    assert logits.shape == (4, 3)
    assert logits.dtype == tf.float32
    assert {weight.dtype for weight in model.weights} == {"float32"}


def test_seed_determines_the_initial_weights() -> None:
    first, again, other = (build_model(SMALL, 2, 32, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(not np.array_equal(one, two) for one, two in zip(first.weights, other.weights, strict=True))


@pytest.mark.parametrize(
    "spec", [PlainSpec(filters=(4,), dense_units=(8,)), ResidualSpec(filters=(4,), blocks=(1,)), AIRBENCH]
)
def test_initial_weights_do_not_use_the_global_random_generator(spec: ModelSpec) -> None:
    before = build_model(spec, 3, 16, seed=5).get_weights()
    random.seed(1)
    state = random.getstate()
    after = build_model(spec, 3, 16, seed=5).get_weights()
    # The global generator, shared by all threads, is neither used nor reset.
    assert random.getstate() == state
    random.seed(2)
    later = build_model(spec, 3, 16, seed=5).get_weights()
    for one, two, three in zip(before, after, later, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_inference_model_has_the_weights_of_the_trained_one_in_the_same_order() -> None:
    mirrored = SMALL.model_copy(update={"average_mirror": True})
    model, inference = (
        build_model(mirrored, 2, 32, "bfloat16", seed=3),
        build_inference_model(mirrored, 2, 32),
    )
    assert [weight.shape for weight in model.weights] == [weight.shape for weight in inference.weights]
    for target, source in zip(inference.weights, build_model(mirrored, 2, 32, seed=3).weights, strict=True):
        target.assign(source)
    plain = build_model(mirrored, 2, 32, seed=3)
    both = (plain(pixels()) + plain(pixels()[:, :, ::-1])) / 2
    np.testing.assert_allclose(inference(pixels()), both, atol=1e-5)


@pytest.mark.parametrize("spec", [SMALL, AIRBENCH])
def test_families_with_global_pooling_accept_any_image_size(spec: ModelSpec) -> None:
    model = build_model(spec, 2, 32)
    assert model(pixels(1, 32)).shape == model(pixels(1, 49)).shape == (1, 2)


def test_linear_schedule_decays_linearly() -> None:
    spec = OptimizerSpec(learning_rate=0.1, schedule="linear", final_fraction=0.1)
    _, schedule = build_optimizer(
        spec, build_model(SMALL, 2, 32).trainable_variables, steps_per_epoch=10, total_steps=100
    )
    assert [float(schedule(step)) for step in (0, 50, 100)] == pytest.approx([0.1, 0.055, 0.01])


def test_schedule_warms_up_decays_and_can_be_halved() -> None:
    spec = OptimizerSpec(learning_rate=0.1, schedule="cosine", warmup_epochs=2.0, final_fraction=0.1)
    model = build_model(SMALL, 2, 32)
    _, schedule = build_optimizer(spec, model.trainable_variables, steps_per_epoch=10, total_steps=100)
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1 / 21)
    assert rates[20] == pytest.approx(0.1)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[60] == pytest.approx(0.055, rel=1e-3)
    assert rates[100] == pytest.approx(0.01)
    schedule.scale.assign(0.5)
    assert float(schedule(20)) == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw", "muon"])
def test_weight_decay_applies_to_kernels_only(name: str) -> None:
    model = build_model(SMALL, 2, 32)
    optimizer, _ = build_optimizer(
        OptimizerSpec(name=name, learning_rate=0.1, weight_decay=0.5), model.trainable_variables, 1, 1
    )
    before = [weight.numpy() for weight in model.trainable_variables]
    optimizer.apply(
        [tf.zeros(weight.shape) for weight in model.trainable_variables], model.trainable_variables
    )
    for weight, old in zip(model.trainable_variables, before, strict=True):
        factor = 0.95 if len(weight.shape) > 1 else 1.0
        np.testing.assert_allclose(weight, factor * old, atol=1e-6)


def test_no_weight_decays_without_weight_decay() -> None:
    model = build_model(SMALL, 2, 32)
    optimizer, _ = build_optimizer(
        OptimizerSpec(name="adamw", learning_rate=0.1), model.trainable_variables, 1, 1
    )
    before = [weight.numpy() for weight in model.trainable_variables]
    optimizer.apply(
        [tf.zeros(weight.shape) for weight in model.trainable_variables], model.trainable_variables
    )
    for weight, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(weight, old)
