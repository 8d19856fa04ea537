"""What a network is trained for: one label an image, or any number of them.

In: labels and logits. Out: losses, hits and probabilities. All else of training, evaluation and export is
alike for both. Labels are the index of the class, int32 [batch], or 1 for each label that an image has,
int32 [batch, labels]; logits are float32 [batch, classes] either way.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.multilabel.ranking import Ranking

Floats = npt.NDArray[np.float64]


class Objective(Protocol):
    """How logits become losses and answers."""

    def losses(
        self, labels: tf.Tensor, logits: tf.Tensor, class_weights: tf.Tensor, smoothing: float
    ) -> tf.Tensor:
        """Return the loss of each image, float32 [batch]; class_weights: float32 [classes]."""

    def hits(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return whether each image is answered right, bool [batch]."""

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Return probabilities, [batch, classes], in the precision of the logits."""

    def balance(self, counts: npt.NDArray[np.int64], images: int) -> Floats:
        """Return the weights of train.class_weights balanced, [classes].

        counts: int64 [classes], the training images of each class, of `images` in all.
        """

    def validate(self, labels: npt.NDArray[np.int32], probabilities: Floats) -> dict[str, float]:
        """Return `loss`, `accuracy` and the other validation metrics of a split."""


class SingleLabel:
    """One class an image: softmax and cross-entropy."""

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
        """See `Objective`; images / (classes * images of the class), as scikit-learn has it."""
        return np.asarray(images / (len(counts) * np.maximum(counts, 1)))

    def validate(self, labels: npt.NDArray[np.int32], probabilities: Floats) -> dict[str, float]:
        """See `Objective`."""
        chosen = probabilities[np.arange(len(labels)), labels]
        return {
            "loss": float(-np.mean(np.log(np.maximum(chosen, np.finfo(np.float64).eps)))),
            "accuracy": float(np.mean(np.argmax(probabilities, axis=1) == labels)),
        }


class MultiLabel:
    """Any number of labels an image: a sigmoid and a binary cross-entropy for each."""

    def losses(
        self, labels: tf.Tensor, logits: tf.Tensor, class_weights: tf.Tensor, smoothing: float
    ) -> tf.Tensor:
        """See `Objective`; the mean over the labels, smoothed towards 1/2.

        `class_weights` weigh the images that have a label against those that don't: PyTorch's `pos_weight`.
        """
        truth = tf.cast(labels, tf.float32)
        targets = truth * (1.0 - smoothing) + smoothing / 2
        losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        return tf.reduce_mean(losses * (1.0 + truth * (class_weights - 1.0)), axis=1)

    def hits(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """See `Objective`; right is an image whose labels are all those above 1/2, and no other."""
        return tf.reduce_all(tf.equal(logits >= 0.0, labels > 0), axis=1)

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """See `Objective`; each by itself."""
        return tf.nn.sigmoid(logits)

    def balance(self, counts: npt.NDArray[np.int64], images: int) -> Floats:
        """See `Objective`; the images without a label over those with it: both then weigh alike."""
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


def objective_of(labels: Literal["single", "multi"]) -> Objective:
    """Return the objective of data.labels."""
    return MULTI if labels == "multi" else SINGLE
