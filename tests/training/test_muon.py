"""Muon: the orthogonalised update, its norm, and the weights that it applies to."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.training.optimizer import Muon, orthogonalize


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(30, 7), (7, 30)])
def test_orthogonalized_matrix_has_singular_values_near_one(shape: tuple[int, int], precision: str) -> None:
    random = np.random.default_rng(0).normal(size=shape)
    left, _, right = np.linalg.svd(random, full_matrices=False)
    matrix = (left * np.geomspace(1.0, 0.03, 7) @ right).astype(np.float32)
    result = orthogonalize(tf.constant(1e-3 * matrix), precision).numpy()
    assert result.dtype == np.float32
    values = np.linalg.svd(result, compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.25
    # Close to U V', the nearest orthogonal matrix.
    assert np.linalg.norm(result - left @ right) < 0.35 * np.sqrt(7)
    np.testing.assert_array_equal(orthogonalize(tf.zeros(shape), precision), np.zeros(shape))


def variables() -> list[keras.Variable]:
    """Return a convolution kernel and bias, a depthwise kernel, and kernel and bias of the output layer."""
    hidden = [("hidden", (3, 3, 2, 5)), ("hidden", (5,)), ("depthwise", (3, 3, 4, 1))]
    rng, made = np.random.default_rng(1), []
    for layer, shape in [*hidden, ("logits", (6, 3)), ("logits", (3,))]:
        with keras.name_scope(layer):
            made.append(keras.Variable(rng.normal(size=shape).astype(np.float32), name="weight"))
    return made


def gradients(step: int) -> list[tf.Tensor]:
    rng = np.random.default_rng(2 + step)
    return [tf.constant(rng.normal(size=weight.shape).astype(np.float32)) for weight in variables()]


def test_hidden_kernel_moves_in_the_orthogonal_direction_by_the_step_size_of_adamw() -> None:
    weights = variables()
    optimizer = Muon(0.1, momentum=0.9, nesterov=True, decay=0.5)
    optimizer.build(weights)
    kernel, moment = weights[0].numpy().reshape(18, 5), np.zeros((18, 5))
    for step in range(2):
        gradient = gradients(step)[0].numpy().reshape(18, 5)
        moment = 0.9 * moment + gradient
        update = orthogonalize(tf.constant(gradient + 0.9 * moment, tf.float32)).numpy()
        kernel = kernel * (1.0 - 0.1 * 0.5) - 0.1 * 0.2 * np.sqrt(18) * update
        optimizer.apply(gradients(step), weights)
    np.testing.assert_allclose(weights[0].numpy().reshape(18, 5), kernel, atol=1e-5)
    assert 0.15 < np.sqrt(np.mean((0.2 * np.sqrt(18) * update) ** 2)) < 0.25


def test_unit_kernel_is_normalized_before_a_step_and_moves_by_a_share_of_its_norm() -> None:
    weights = variables()
    optimizer = Muon(0.1, momentum=0.0, nesterov=False, unit_kernels=True)
    optimizer.build(weights)
    before = weights[0].numpy()
    optimizer.apply(gradients(0), weights)
    update = orthogonalize(tf.reshape(gradients(0)[0], [18, 5])).numpy().reshape(3, 3, 2, 5)
    expected = before * np.sqrt(5) / np.linalg.norm(before) - 0.1 * update
    np.testing.assert_allclose(weights[0], expected, atol=1e-5)


def train_both(optimizer: Muon, twin: keras.Optimizer, undecayed: tuple[int, ...] = ()) -> tuple[list, list]:
    """Do three equal steps with both; return the weights of each. `twin` does not decay `undecayed`."""
    ours, theirs = variables(), variables()
    optimizer.build(ours)
    twin.exclude_from_weight_decay([theirs[index] for index in undecayed])
    twin.build(theirs)
    for step in range(3):
        optimizer.apply(gradients(step), ours)
        twin.apply(gradients(step), theirs)
    return ours, theirs


def test_biases_depthwise_kernels_and_output_layer_are_trained_by_adamw_at_their_own_rate() -> None:
    twin = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    ours, theirs = train_both(Muon(0.1, decay=0.5, rest_ratio=0.1), twin, undecayed=(1, 4))
    for index in (1, 2, 3, 4):
        np.testing.assert_allclose(ours[index], theirs[index], atol=1e-5)
    assert not np.allclose(ours[0], theirs[0], atol=1e-3)


def test_other_weights_can_be_trained_by_sgd_with_momentum() -> None:
    twin = keras.optimizers.SGD(0.01, momentum=0.8, nesterov=True)
    ours, theirs = train_both(Muon(0.1, rest_ratio=0.1, rest_momentum=0.8), twin)
    for index in (1, 2, 3, 4):
        np.testing.assert_allclose(ours[index], theirs[index], atol=1e-5)


def test_muon_state_is_in_its_variables() -> None:
    weights = variables()
    optimizer = Muon(0.1)
    optimizer.build(weights)
    state = [variable for variable in optimizer.variables if len(variable.shape)]
    # Only momentum for the hidden kernel, two moments for each of the four others.
    assert len(state) == 1 + 2 * 4
    optimizer.apply(gradients(0), weights)
    assert all(np.any(variable.numpy()) for variable in state)


@pytest.mark.parametrize("is_divided", [False, True])
def test_every_kernel_except_that_of_the_output_layer_is_hidden(is_divided: bool) -> None:
    hidden = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(5)])
    head = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, name="logits")])
    parts = [hidden.trainable_variables, head.trainable_variables]
    is_hidden = []
    for group in parts if is_divided else [[*parts[0], *parts[1]]]:
        optimizer = Muon(0.1)
        optimizer.build(group)
        is_hidden += optimizer.hidden
    assert is_hidden == [True, False, True, False, False, False]
