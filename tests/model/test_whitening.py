"""The whitening layer of the airbench family: its weights are fitted once and then frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_training import dark_and_light, do_train, learner_for, untimed, values

from trainer.data.dataset import Dataset
from trainer.distributed.devices import find_cluster
from trainer.errors import StoppedError
from trainer.model.airbench import PatchSums, WhiteningConv2D, sum_patches, whitening_weights
from trainer.model.layers import Kernels
from trainer.spec import load_spec
from trainer.training import Learner
from trainer.training.learner import total_of, whiten_first_layer

FAST = [
    "data.image_size=16",
    "model={family: airbench, filters: [8], dropout: 0.3}",
    "augment={flip: alternating, translate_pixels: 2}",
    "optimizer={name: muon, learning_rate: 0.1, momentum: 0.6, unit_kernels: true, rest_rate: 0.01}",
    "optimizer.schedule=linear",
    "train={epochs: 2, global_batch_size: 8, deterministic: true, ema_decay: 0.5}",
]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


def smooth_images() -> np.ndarray:
    """Return images with correlated pixels and channels, uint8 [20, 12, 12, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(20, 4, 4, 1)).repeat(3, axis=1).repeat(3, axis=2)
    return np.clip(110 + 30 * coarse + rng.normal(size=(20, 12, 12, 3)) * 8, 0, 255).astype(np.uint8)


def outputs_of(images: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    layer = WhiteningConv2D()
    layer.build((None, None, None, 3))
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)
    return layer(tf.constant(images / 127.5 - 1.0, tf.float32)).numpy()


def test_whitened_patches_are_uncorrelated_with_mean_zero_and_unit_variance() -> None:
    images = smooth_images()
    outputs = outputs_of(images, *whitening_weights(sum_patches(images)))
    assert outputs.shape == (20, 11, 11, 24)
    half = outputs[..., :12].reshape(-1, 12)
    np.testing.assert_allclose(half.mean(axis=0), 0.0, atol=1e-3)
    # Epsilon damps the directions of least variance, so their variance stays below 1.
    np.testing.assert_allclose(np.cov(half.T), np.eye(12), atol=0.05)
    np.testing.assert_allclose(outputs[..., 12:], -outputs[..., :12], atol=1e-4)


def test_images_of_one_colour_are_whitened_to_finite_values() -> None:
    images = np.full((4, 8, 8, 3), 200, np.uint8)
    np.testing.assert_allclose(outputs_of(images, *whitening_weights(sum_patches(images))), 0.0, atol=1e-3)


def test_patch_sums_do_not_depend_on_the_division_of_the_images() -> None:
    images = smooth_images()
    whole = sum_patches(images)
    assert whole.count == 20 * 11 * 11
    patch = images[3, 4:6, 5:7].reshape(-1).astype(np.int64)
    single = sum_patches(images[3:4, 4:6, 5:7])
    np.testing.assert_array_equal(single.second, np.outer(patch, patch))
    parts = total_of([sum_patches(images[rows]) for rows in (slice(0, 7), slice(7, 7), slice(7, 20))])
    assert isinstance(parts, PatchSums)
    assert parts.count == whole.count
    np.testing.assert_array_equal(parts.first, whole.first)
    np.testing.assert_array_equal(parts.second, whole.second)


def whitened(dataset: Dataset) -> Learner:
    learner = learner_for(load_spec(settings=FAST), dataset)
    whiten_first_layer(learner, dataset.train, find_cluster())
    return learner


def test_whitening_kernel_is_computed_once_and_only_the_bias_is_trained(
    dataset: Dataset, tmp_path: Path
) -> None:
    kernel, bias = whitening_weights(sum_patches(dataset.train.pixels.gather(np.arange(44))))
    learner, _ = do_train(load_spec(settings=FAST), dataset, tmp_path, learner=whitened(dataset))
    layer = next(each for each in learner.inference_model.layers if isinstance(each, WhiteningConv2D))
    np.testing.assert_array_equal(layer.kernel, kernel)
    assert 0 < np.abs(layer.bias.numpy() - bias).max() < 1.0


def test_muon_and_alternating_flips_resume_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=FAST)
    whole, result = do_train(spec, dataset, tmp_path / "whole", learner=whitened(dataset))
    with pytest.raises(StoppedError):
        do_train(spec, dataset, tmp_path / "stopped", stop_at=8, learner=whitened(dataset))
    # A restart without whitening restores the weights from the checkpoint.
    stopped, again = do_train(spec, dataset, tmp_path / "stopped")
    for name, value in values(whole).items():
        np.testing.assert_array_equal(value, values(stopped)[name], err_msg=name)
    assert untimed(again.history) == untimed(result.history)


def test_dirac_kernel_passes_its_inputs_through() -> None:
    kernel = Kernels(3).dirac()((3, 3, 4, 6))
    inputs = tf.constant(np.random.default_rng(0).normal(size=(2, 5, 5, 4)), tf.float32)
    outputs = tf.nn.conv2d(inputs, kernel, 1, "SAME")
    np.testing.assert_allclose(outputs[..., :4], inputs, atol=1e-5)
    bound = 1.0 / np.sqrt(3 * 3 * 4)
    random = np.array(kernel)[..., 4:]
    assert 0.8 * bound < np.abs(random).max() <= bound
    assert Kernels(3).dirac()((3, 3, 6, 4)).shape == (3, 3, 6, 4)
