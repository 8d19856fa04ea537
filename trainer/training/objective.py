"""Training objectives: one label per image, or multiple labels per image.

An objective defines losses, hits and probabilities; the rest of training, evaluation and export is the same
for both. Labels are the index of the class, int32 [batch], or 1 for each label that an image has, int32
[batch, labels]. Logits are float32 [batch, classes] in both cases.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.ranking import Ranking

Floats = npt.NDArray[np.float64]


class Objective(Protocol):
    """Losses, hits, probabilities and metrics of a type of labels."""

    def losses(
        self, labels: tf.Tensor, logits: tf.Tensor, class_weights: tf.Tensor, smoothing: float
    ) -> tf.Tensor:
        """Return the loss of each image, float32 [batch]; class_weights: float32 [classes]."""

    def hits(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return whether each image is classified correctly, bool [batch]."""

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Return probabilities, [batch, classes], in the dtype of the logits."""

    def balance(self, counts: npt.NDArray[np.int64], images: int) -> Floats:
        """Return the weights for train.class_weights balanced, [classes].

        counts: int64 [classes], the number of training images of each class. images: the number of all
        training images.
        """

    def validate(self, labels: npt.NDArray[np.int32], probabilities: Floats) -> dict[str, float]:
        """Return `loss`, `accuracy` and the other validation metrics of a split."""


class SingleLabel:
    """One class per image: softmax and cross-entropy."""

    def losses(
        self, labels: tf.Tensor, logits: tf.Tensor, class_weights: tf.Tensor, smoothing: float
    ) -> tf.Tensor:
        """See `Objective`; each image has the weight of its class."""
        classes = len(class_weights)
        targets = tf.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        return losses * tf.gather(class_weights, labels)

    def hits(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """See `Objective`."""
        return tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), labels)

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """See `Objective`; rows sum to 1."""
        return tf.nn.softmax(logits)

    def balance(self, counts: npt.NDArray[np.int64], images: int) -> Floats:
        """See `Objective`; images / (classes * images of the class), as in scikit-learn."""
        return np.asarray(images / (len(counts) * np.maximum(counts, 1)))

    def validate(self, labels: npt.NDArray[np.int32], probabilities: Floats) -> dict[str, float]:
        """See `Objective`."""
        of_label = probabilities[np.arange(len(labels)), labels]
        return {
            "loss": float(-np.mean(np.log(np.maximum(of_label, np.finfo(np.float64).eps)))),
            "accuracy": float(np.mean(np.argmax(probabilities, axis=1) == labels)),
        }


class MultiLabel:
    """Any number of labels per image: a sigmoid and a binary cross-entropy for each label."""

    def losses(
        self, labels: tf.Tensor, logits: tf.Tensor, class_weights: tf.Tensor, smoothing: float
    ) -> tf.Tensor:
        """See `Objective`; the mean over the labels, smoothed towards 1/2.

        `class_weights` is the weight of images with a label relative to images without, PyTorch's
        `pos_weight`.
        """
        truth = tf.cast(labels, tf.float32)
        targets = truth * (1.0 - smoothing) + smoothing / 2
        losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        return tf.reduce_mean(losses * (1.0 + truth * (class_weights - 1.0)), axis=1)

    def hits(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """See `Objective`; a hit has probabilities of at least 1/2 for exactly the labels of the image."""
        return tf.reduce_all(tf.equal(logits >= 0.0, labels > 0), axis=1)

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """See `Objective`; labels are independent."""
        return tf.nn.sigmoid(logits)

    def balance(self, counts: npt.NDArray[np.int64], images: int) -> Floats:
        """See `Objective`; images without a label / images with it: both get the same total weight."""
        return np.asarray(np.maximum(images - counts, 1) / np.maximum(counts, 1))

    def validate(self, labels: npt.NDArray[np.int32], probabilities: Floats) -> dict[str, float]:
        """See `Objective`; with `mean_average_precision`, unless no image has a label."""
        truth = labels > 0
        of_truth = np.where(truth, probabilities, 1 - probabilities)
        mean = Ranking(truth, probabilities).mean()
        return {
            "loss": float(-np.mean(np.log(np.maximum(of_truth, np.finfo(np.float64).eps)))),
            "accuracy": float(np.mean(((probabilities >= 0.5) == truth).all(axis=1))),
            **({} if np.isnan(mean) else {"mean_average_precision": mean}),
        }


SINGLE, MULTI = SingleLabel(), MultiLabel()


def get_objective(labels: Literal["single", "multi"]) -> Objective:
    """Return the objective for data.labels."""
    return MULTI if labels == "multi" else SINGLE
