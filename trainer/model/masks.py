"""Dropout whose mask belongs to the image, not to the device.

In: features of some rows of a global batch. Out: the same, of which some are zero. The numbers are a pure
function of the run's seed, the layer, the step and the row's place in the global batch: so any number of
replicas drops the same, each its own rows', and a restart has no state to restore.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from trainer.draws import uniform

# Keeps the draws of each layer apart from each other, and from those of augmentation.
_FIRST_STREAM = 1 << 41


@dataclass(frozen=True)
class Rows:
    """Which rows of which global batch a model is given."""

    step: tf.Tensor
    """int64 scalar."""
    places: tf.Tensor
    """int32 [rows], from 0."""
    count: tf.Tensor
    """int32 scalar: the rows of the global batch."""
    weight: float | tf.Tensor = 1.0
    """1, or 0 where they only stand in for rows that a replica has none of."""


_ROWS: ContextVar[Rows | None] = ContextVar("rows", default=None)


@contextmanager
def of_rows(rows: Rows) -> Iterator[None]:
    """Let the dropout of models that are called in this block know which rows they are given."""
    token = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(token)


def weight_of_rows() -> float | tf.Tensor:
    """Return how much the rows count that a model is given, 1 outside of `of_rows`."""
    rows = _ROWS.get()
    return 1.0 if rows is None else rows.weight


class RowDropout(keras.layers.Layer):  # type: ignore[misc]
    """Dropout (Srivastava et al. 2014); with `whole_rows` of all of a row at once (Huang et al. 2016).

    Outside of `of_rows` the rows are those of the first step, in their order.
    """

    def __init__(self, rate: float, seed: int, whole_rows: bool = False, **options: Any) -> None:
        """`rate` is in 0..1; `seed`, 0 to 2**31 - 1, is the run's."""
        super().__init__(**options)
        self.rate, self.seed, self.whole_rows = rate, seed, whole_rows
        self.stream = 0
        """Which dropout of its model this is; set by `number_dropouts`."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return `inputs`, [rows, ...], unchanged but in training; what is kept is divided by 1 - rate."""
        if not training or not self.rate:
            return inputs
        shape = tf.shape(inputs)
        rows = _ROWS.get() or Rows(tf.constant(0, tf.int64), tf.range(shape[0]), shape[0])
        ones = tf.ones([inputs.shape.rank - 1], tf.int32)
        numbers = uniform(
            tf.concat([[rows.count], ones if self.whole_rows else shape[1:]], axis=0),
            tf.stack([tf.constant(_FIRST_STREAM * (1 + self.stream) + self.seed, tf.int64), rows.step]),
        )
        is_kept = tf.gather(numbers, rows.places) >= self.rate
        return inputs * tf.cast(is_kept, inputs.dtype) / (1.0 - self.rate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return `input_shape`."""
        return input_shape


def number_dropouts(model: keras.Model) -> None:
    """Give each dropout of `model` numbers of its own."""
    for index, layer in enumerate(_dropouts(model)):
        layer.stream = index


def _dropouts(model: keras.Model) -> Iterator[RowDropout]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _dropouts(layer)
        elif isinstance(layer, RowDropout):
            yield layer
