"""Dropout whose mask depends on the position in the global batch and not on the device.

The random numbers are a pure function of the run's seed, the layer, the step and the row's position in the
global batch. Any number of replicas therefore drops the same values, and a restart has no state to restore.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from trainer.augment.random import uniform

# Separates the random numbers of the layers from each other, and from those of augmentation.
_FIRST_STREAM = 1 << 41


@dataclass(frozen=True)
class BatchRows:
    """Rows of a global batch that are the input of a model."""

    step: tf.Tensor
    """int64 scalar."""
    positions: tf.Tensor
    """int32 [rows], from 0."""
    count: tf.Tensor
    """Number of rows of the global batch, int32 scalar."""
    weight: float | tf.Tensor = 1.0
    """1, or 0 if the rows are only padding of a replica's empty share."""


_ROWS: ContextVar[BatchRows | None] = ContextVar("rows", default=None)


@contextmanager
def of_rows(rows: BatchRows) -> Iterator[None]:
    """Set the rows that are the input of models called in this context."""
    token = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(token)


def weight_of_rows() -> float | tf.Tensor:
    """Return the weight of the input rows of the current model; 1 outside of `of_rows`."""
    rows = _ROWS.get()
    return 1.0 if rows is None else rows.weight


class RowDropout(keras.layers.Layer):  # type: ignore[misc]
    """Dropout (Srivastava et al. 2014); with `whole_rows` stochastic depth (Huang et al. 2016).

    `whole_rows` drops all values of a row at once. Outside of `of_rows`, the rows count as those of step 0,
    in their order.
    """

    def __init__(self, rate: float, seed: int, whole_rows: bool = False, **options: Any) -> None:
        """rate: in 0..1. seed: the run's seed, 0 to 2**31 - 1."""
        super().__init__(**options)
        self.rate, self.seed, self.whole_rows = rate, seed, whole_rows
        self.stream = 0
        """Index of this dropout in its model; set by `number_dropouts`."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return `inputs`, [rows, ...]; in training with values dropped and the rest divided by 1 - rate."""
        if not training or not self.rate:
            return inputs
        shape = tf.shape(inputs)
        rows = _ROWS.get() or BatchRows(tf.constant(0, tf.int64), tf.range(shape[0]), shape[0])
        ones = tf.ones([inputs.shape.rank - 1], tf.int32)
        numbers = uniform(
            tf.concat([[rows.count], ones if self.whole_rows else shape[1:]], axis=0),
            tf.stack([tf.constant(_FIRST_STREAM * (1 + self.stream) + self.seed, tf.int64), rows.step]),
        )
        is_kept = tf.gather(numbers, rows.positions) >= self.rate
        return inputs * tf.cast(is_kept, inputs.dtype) / (1.0 - self.rate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return `input_shape`."""
        return input_shape


def number_dropouts(model: keras.Model) -> None:
    """Assign a separate stream of random numbers to each dropout of `model`."""
    for index, layer in enumerate(_dropouts(model)):
        layer.stream = index


def _dropouts(model: keras.Model) -> Iterator[RowDropout]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _dropouts(layer)
        elif isinstance(layer, RowDropout):
            yield layer
