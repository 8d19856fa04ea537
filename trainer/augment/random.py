"""Random numbers as a pure function of a seed: identical on any device, with and without XLA.

TensorFlow's own generators are not identical: with XLA they generate other random bits, and derive floats
from other positions of the bits (TensorFlow 2.21).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

_BITS = 23
"""Bits of the mantissa of a float32."""


def uniform(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Return uniform numbers in [0, 1), float32 of `shape`; `seed` is int32 or int64 [2].

    The generator is Philox (Salmon et al. 2011), set explicitly because XLA would choose another one. The
    numbers use the low 23 of each 32 bits, like TensorFlow's kernels for CPUs and GPUs.
    """
    bits = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox")
    low = tf.bitwise.bitwise_and(bits, tf.constant((1 << _BITS) - 1, tf.uint32))
    return tf.cast(low, tf.float32) * 2.0**-_BITS


def normal(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Return numbers of the standard normal distribution, float32 of `shape`; `seed` is int32 or int64 [2].

    Box and Muller (1958).
    """
    radii, angles = tf.unstack(uniform(tf.concat([[2], shape], axis=0), seed))
    return tf.sqrt(-2.0 * tf.math.log(1.0 - radii)) * tf.cos(2.0 * math.pi * angles)


def coins(numbers: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Return a fair coin toss for each of `numbers`, bool of the same shape.

    It is a pure function of number and seed: the highest bit of the finalizer of SplitMix64 (Steele et al.
    2014).
    """
    start = (seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    x = numbers.astype(np.uint64) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(63)).astype(np.bool_)
