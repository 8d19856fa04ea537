"""Novelty detector: how unlike the training images an image is, as a conformal p-value.

The score of an image is the squared distance of its L2-normalised features to the training images. The
leading principal components are stored one by one; the others are represented by their sum, the residual. A
high score means that the image is unlike the training images. It does not mean that it shows none of the
classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Array = NDArray[np.float32]
Method = Literal["neighbour", "mahalanobis"]

_TIE = 1e-4
"""Relative difference up to which two scores are equal; devices round the last digits differently."""


@dataclass(frozen=True, eq=False)
class FeatureIndex:
    """Points in a projection of the features, with distances that include the residual."""

    center: Array
    """[width], the mean of the normalised features."""
    projection: Array
    """[width, rank]; its columns are orthogonal."""
    points: Array
    """[points, rank], in the projection."""
    offsets: Array
    """[points], squared norms of the points and their weighted squared residuals."""
    scales: Array
    """[rank], the lengths of the columns of the projection."""
    residual_weight: float
    """Factor of the squared residual of an image."""

    def distances(self, features: tf.Tensor) -> tf.Tensor:
        """Return squared distances to all points, float32 [batch, points], of features [batch, width].

        The residuals of an image and a point are taken to be orthogonal.
        """
        norms = tf.norm(features, axis=1, keepdims=True)
        centred = tf.math.divide_no_nan(features, norms) - self.center
        projected = tf.matmul(centred, self.projection)
        within = tf.reduce_sum(tf.square(projected / self.scales), axis=1)
        residual = tf.nn.relu(tf.reduce_sum(tf.square(centred), axis=1) - within)
        lengths = tf.reduce_sum(tf.square(projected), axis=1) + self.residual_weight * residual
        products = tf.matmul(projected, self.points, transpose_b=True)
        return tf.nn.relu(lengths[:, None] - 2.0 * products + self.offsets)

    def with_variables(self) -> FeatureIndex:
        """Return the index with its arrays in variables, which the signatures of a SavedModel share."""
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        variables = {
            name: tf.Variable(array, trainable=False, name=name)
            for name, array in arrays.items()
            if isinstance(array, np.ndarray)
        }
        return replace(self, **variables)

    @property
    def bytes(self) -> int:
        """Size of the arrays in bytes."""
        arrays = (self.center, self.projection, self.points, self.offsets, self.scales)
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, eq=False)
class NoveltyDetector:
    """Scores of novelty and the scores of the calibration images."""

    method: Method
    """How a score is computed: by the distance to the k-th nearest training image, or to the nearest class
    mean in units of the variance within the classes (Mahalanobis)."""
    index: FeatureIndex
    """Training images or class means."""
    neighbour: int
    """Number of the point whose distance is the score, counted from 1, the nearest."""
    calibration: Array
    """[images], the scores of images that the detector was not fitted to, ascending."""
    level: float
    """Images with a p-value below it are rejected, in 0..1."""
    training: FeatureIndex
    """Training images; the same as `index` with the method neighbour."""
    names: tuple[str, ...]
    """Names of the points of `training`."""

    def scores(self, features: tf.Tensor) -> tf.Tensor:
        """Return the novelty of features, float32 [batch, width], as float32 [batch], at least 0."""
        return score(self.index, features, self.neighbour)

    def p_values(self, scores: tf.Tensor) -> tf.Tensor:
        """Return conformal p-values of scores, float32 [batch], in 1 / (images + 1) .. 1.

        The p-value is (1 + number of calibration images that are at least as novel) / (1 + their number), see
        Vovk et al., "Algorithmic Learning in a Random World", 2005, and Bates et al., "Testing for outliers
        with conformal p-values", 2023. It is 1 without calibration images.
        """
        count = len(self.calibration)
        # Pixels that are not finite have no score, and must not be accepted.
        scores = tf.where(tf.math.is_nan(scores), tf.constant(np.inf, tf.float32), scores)
        lower = tf.searchsorted(tf.constant(self.calibration), scores * (1.0 - _TIE), side="left")
        return tf.cast(1 + count - lower, tf.float32) / (1.0 + count)

    def is_accepted(self, p_values: tf.Tensor) -> tf.Tensor:
        """Return which images are accepted, bool [batch]."""
        # An even p-value such as 1/20 must not be rejected because of its rounding to float32.
        return p_values >= self.level - 1e-6

    def nearest(self, features: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the names of the nearest training images, string [batch, n], and their distances.

        n is `count`, or the number of training images in the detector if that is less. The distances are
        Euclidean between normalised features, float32 [batch, n] in 0..2, ascending.
        """
        distances = self.training.distances(features)
        values, rows = tf.math.top_k(-distances, min(count, len(self.names)))
        return tf.gather(tf.constant(self.names), rows), tf.sqrt(-values)

    def with_variables(self) -> NoveltyDetector:
        """Return the detector with its arrays in variables, see `FeatureIndex.with_variables`."""
        training = self.training.with_variables()
        index = training if self.index is self.training else self.index.with_variables()
        return replace(self, index=index, training=training)

    @property
    def variables(self) -> list[tf.Variable]:
        """The variables of a detector that has some."""
        values = [*vars(self.index).values(), *vars(self.training).values()]
        return list({id(value): value for value in values if isinstance(value, tf.Variable)}.values())

    @property
    def bytes(self) -> int:
        """Size of everything that the exported model stores for the detector."""
        names = sum(len(name.encode()) for name in self.names)
        parts = {id(self.index): self.index.bytes, id(self.training): self.training.bytes}
        return sum(parts.values()) + self.calibration.nbytes + names


def score(index: FeatureIndex, features: tf.Tensor, neighbour: int) -> tf.Tensor:
    """Return the squared distance to the point number `neighbour`, counted from 1, float32 [batch]."""
    distances = index.distances(features)
    if neighbour == 1:
        return tf.reduce_min(distances, axis=1)
    return -tf.math.top_k(-distances, neighbour).values[:, -1]
