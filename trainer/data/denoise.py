"""Forward-and-backward diffusion, a filter that removes noise and keeps edges, in graph operations.

Differences between neighbouring pixels that are small compared with the mean difference of the image are
smoothed (forward diffusion), larger ones are sharpened (backward diffusion), and the largest ones are kept.
Source: Gilboa, Sochen and Zeevi, "Forward-and-backward diffusion processes for adaptive image enhancement and
denoising", IEEE Transactions on Image Processing 11(7), 2002. The thresholds are the paper's multiples of the
mean gradient. The scheme on a pixel grid is that of Perona and Malik (1990), with one coefficient for all
channels, so that colours do not separate at edges.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.data.colours import premultiplied, unpremultiplied
from trainer.spec.denoise import DenoiseSpec

_FORWARD, _BACKWARD, _WIDTH = 2.0, 4.0, 1.0
"""Thresholds of the coefficient, as multiples of the mean difference of the image."""
_FRACTIONS = 256.0
"""Differences are summed as integers of this fraction: the sum must not depend on the number of threads."""
_LEAST_MEAN = 1e-3
"""Smallest mean difference; it prevents a division by zero in a constant image."""


def remove_noise(image: tf.Tensor, spec: DenoiseSpec) -> tf.Tensor:
    """Return `image`, uint8 [H, W, channels], without noise, as uint8 of the same shape.

    RGBA is filtered with colours multiplied by alpha, so that invisible colours do not bleed.
    """
    has_alpha = image.shape[-1] == 4
    values = premultiplied(image) if has_alpha else tf.cast(image, tf.float32)
    filtered = diffuse(values[None], spec)[0]
    filtered = unpremultiplied(filtered) if has_alpha else filtered
    return tf.cast(tf.clip_by_value(tf.round(filtered), 0.0, 255.0), tf.uint8)


def diffuse(images: tf.Tensor, spec: DenoiseSpec) -> tf.Tensor:
    """Return `images`, float32 [batch, H, W, channels], after `spec.steps` diffusion steps.

    After each step, a pixel is within the minimum and maximum of the 3 x 3 pixels around it before the step.
    Without this limit the diffusion diverges.
    """

    def advance(step: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return step + 1, _diffuse_once(values, spec)

    return tf.while_loop(
        lambda step, values: step < spec.steps,
        advance,
        (tf.constant(0), images),
        shape_invariants=(tf.TensorShape([]), images.shape),
        parallel_iterations=1,
    )[1]


def _diffuse_once(values: tf.Tensor, spec: DenoiseSpec) -> tf.Tensor:
    """Return float32 [batch, H, W, channels] after one step."""
    down, right = values[:, 1:] - values[:, :-1], values[:, :, 1:] - values[:, :, :-1]
    down_size, right_size = _magnitude(down), _magnitude(right)
    mean = _mean(down_size, right_size)
    # No flow through the border of the image.
    down *= _coefficient(down_size / mean, spec.strength)
    right *= _coefficient(right_size / mean, spec.strength)
    down_flow = tf.pad(down, [[0, 0], [1, 1], [0, 0], [0, 0]])
    right_flow = tf.pad(right, [[0, 0], [0, 0], [1, 1], [0, 0]])
    flow = down_flow[:, 1:] - down_flow[:, :-1] + right_flow[:, :, 1:] - right_flow[:, :, :-1]
    highest = tf.nn.max_pool2d(values, 3, 1, "SAME")
    lowest = -tf.nn.max_pool2d(-values, 3, 1, "SAME")
    return tf.clip_by_value(values + spec.step_size * flow, lowest, highest)


def _magnitude(differences: tf.Tensor) -> tf.Tensor:
    """Return the root mean square over the channels, float32 [batch, H, W, 1]."""
    return tf.sqrt(tf.reduce_mean(differences**2, axis=-1, keepdims=True))


def _mean(*sizes: tf.Tensor) -> tf.Tensor:
    """Return the mean of all `sizes` of each image, float32 [batch, 1, 1, 1], at least `_LEAST_MEAN`."""
    total = sum(
        tf.reduce_sum(tf.cast(tf.round(part * _FRACTIONS), tf.int64), axis=[1, 2, 3], keepdims=True)
        for part in sizes
    )
    count = sum(tf.reduce_prod(tf.shape(part, tf.int64)[1:]) for part in sizes)
    return tf.maximum(tf.cast(total / tf.maximum(count, 1), tf.float32) / _FRACTIONS, _LEAST_MEAN)


def _coefficient(sizes: tf.Tensor, strength: float) -> tf.Tensor:
    """Return the diffusion coefficient for differences in multiples of the mean (equation 12 of the paper).

    It is positive for small differences, and negative around `_BACKWARD`.
    """
    forward = 1.0 / (1.0 + (sizes / _FORWARD) ** 4)
    return forward - strength / (1.0 + ((sizes - _BACKWARD) / _WIDTH) ** 2)
