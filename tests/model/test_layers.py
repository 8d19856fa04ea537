"""Custom layers: cropping and fusion do not change the outputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from trainer.model import build_model
from trainer.model.layers import Conv2D, FusedBatchNormalization
from trainer.spec import PlainSpec


def uncropped(spec: PlainSpec, size: int) -> keras.Model:
    """Return the network as in the Keras examples, without cropping."""
    x = pixels = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 255)(x)
    for index, filters in enumerate(spec.filters):
        x = layers.Conv2D(filters, 3, activation="relu")(x)
        if spec.pool_last or index + 1 < len(spec.filters):
            x = layers.MaxPooling2D(2)(x)
    return keras.Model(pixels, layers.Dense(3)(layers.Flatten()(x)))


@pytest.mark.parametrize("size", [46, 47, 50, 52, 53])
@pytest.mark.parametrize("pool_last", [True, False])
def test_cropping_removes_only_pixels_without_influence_on_the_logits(size: int, pool_last: bool) -> None:
    spec = PlainSpec(filters=(4, 6, 8), pool_last=pool_last)
    ours, theirs = build_model(spec, 3, size), uncropped(spec, size)
    theirs.set_weights(ours.get_weights())
    images = tf.constant(np.random.default_rng(size).uniform(0, 255, (2, size, size, 3)), tf.float32)
    np.testing.assert_allclose(ours(images), theirs(images), atol=1e-5)


@pytest.mark.parametrize(("size", "filters", "pool_last", "seen"), [
    (150, (16, 32, 64, 1024), True, 142), (32, (32, 64, 64), False, 30), (46, (4, 6, 8), True, 46),
])  # fmt: skip
def test_cropping_removes_all_pixels_without_influence(
    size: int, filters: tuple[int, ...], pool_last: bool, seen: int
) -> None:
    model = build_model(PlainSpec(filters=filters, pool_last=pool_last), 3, size)
    cropping = next(layer for layer in model.layers if isinstance(layer, layers.Cropping2D))
    assert cropping.output.shape[1:3] == (seen, seen)


def run_layer(layer: layers.Layer, images: tf.Tensor) -> list[np.ndarray]:
    """Return outputs, gradients and moving statistics of one training step, then the inference outputs."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=True)
        total = tf.reduce_sum(tf.cast(outputs, tf.float32) * tf.sin(tf.range(10.0)))
    gradients = tape.gradient(total, [images, *(weight.value for weight in layer.trainable_weights)])
    moving = [weight.numpy() for weight in layer.non_trainable_weights]
    tensors = [outputs, *gradients, *moving, layer(images, training=False)]
    return [np.asarray(tf.cast(tensor, tf.float32)) for tensor in tensors]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("mixed_bfloat16", 0.05)])
def test_fused_normalization_equals_that_of_keras(precision: str, tolerance: float) -> None:
    options = {"momentum": 0.9, "epsilon": 1e-5, "dtype": keras.DTypePolicy(precision)}
    ours, theirs = FusedBatchNormalization(**options), layers.BatchNormalization(**options)
    noise = np.random.default_rng(0).normal(3.0, 2.0, (4, 5, 3, 10))
    images = tf.constant(noise, tf.bfloat16 if precision == "mixed_bfloat16" else tf.float32)
    for layer in (ours, theirs):
        layer.build(images.shape)
        layer.set_weights([np.linspace(0.5, 2.0, 10), np.linspace(-1.0, 1.0, 10), np.ones(10), np.ones(10)])
    for actual, expected in zip(run_layer(ours, images), run_layer(theirs, images), strict=True):
        np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)
    # The sample variance would differ by half a percent.
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=1e-3)


def test_normalization_of_a_single_pixel_is_finite() -> None:
    layer = FusedBatchNormalization()
    assert np.isfinite(layer(tf.ones([1, 1, 1, 2]), training=True)).all()
    np.testing.assert_allclose(layer.moving_variance, 0.99, rtol=1e-6)


def fill_freed_memory_with_nan() -> None:
    """Fill and free tensors of many sizes, so that operations that read uninitialised memory return NaN."""
    for precision in (tf.bfloat16, tf.float32):
        filled = [tf.fill([1 << power], tf.constant(float("nan"), precision)) for power in range(6, 21)]
        del filled


@pytest.mark.parametrize(
    ("sides", "stride"),
    [((1, 1), 2), ((1, 1), 4), ((2, 2), 3), ((2, 2), 4), ((1, 3), 2), ((5, 1), 2), ((2, 7), 3), ((3, 1), 2)],
)
def test_convolution_of_a_map_smaller_than_the_stride_equals_keras_with_finite_gradients(
    sides: tuple[int, int], stride: int
) -> None:
    options = {"filters": 24, "kernel_size": 3, "strides": stride, "padding": "same", "use_bias": False}
    images = tf.constant(np.random.default_rng(0).normal(size=(2, *sides, 16)), tf.bfloat16)
    layer = Conv2D(**options, dtype="mixed_bfloat16")
    theirs = keras.layers.Conv2D(**options)
    theirs.build(images.shape)
    outputs = layer(images)
    theirs.set_weights(layer.get_weights())
    expected = theirs(tf.cast(images, tf.float32))
    assert outputs.shape == expected.shape
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), expected, atol=0.03, rtol=0.03)
    for _ in range(5):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.cast(layer(images), tf.float32))
            fill_freed_memory_with_nan()
        assert np.isfinite(tape.gradient(total, layer.kernel.value)).all()
