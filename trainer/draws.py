"""Random numbers that are a pure function of a seed: the same on any device, with XLA and without.

In: a shape and two integers. Out: a tensor. TensorFlow's own numbers are not that: when they are compiled
by XLA they come from other bits, and of equal bits from others of them (tensorflow 2.21).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

_BITS = 23
"""Of the mantissa of a float32."""


def uniform(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Return uniform numbers in [0, 1), float32 of `shape`; `seed` is int32 or int64 [2].

    Philox (Salmon et al. 2011), named since XLA would else choose another generator; the low 23 bits of each
    32, as TensorFlow's own kernels for CPUs and GPUs take them.
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
    """Return a coin toss for each of `numbers`, bool of its shape: a pure function of number and seed.

    The finaliser of SplitMix64 (Steele et al. 2014), whose highest bit is taken.
    """
    start = (seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    x = numbers.astype(np.uint64) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(63)).astype(np.bool_)
