"""Compiled training steps.

One step is: augmentation, forward pass, loss over the global batch, gradients, all-reduce over all replicas,
clipping, update, moving average of the weights. Random numbers are assigned to rows of the global batch, and
all statistics cover the whole of it, so the step is the same on any number of replicas.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.augment.transforms import MIX_DRAWS, EpochView, augment_images, draw_numbers, mix_images
from trainer.data.items import by_normalized, normalized
from trainer.distributed.devices import Cluster, choose_xla
from trainer.errors import UsageError
from trainer.model.dropout import BatchRows, of_rows
from trainer.model.pretrained import get_head
from trainer.spec import AugmentSpec, RunSpec
from trainer.training.learner import Learner
from trainer.training.objective import SINGLE, Objective, get_objective
from trainer.training.phases import Phase
from trainer.training.prefetch import BatchBlock

# Separates the random numbers of augmentation from other uses of the same seed.
_AUGMENT_STREAM = 1 << 40


@dataclass(frozen=True)
class Sums:
    """Sums over the images of one step."""

    loss: float
    hits: float
    images: float


class TrainStep:
    """Runs blocks of steps on a learner."""

    def __init__(
        self,
        learner: Learner,
        spec: RunSpec,
        class_weights: np.ndarray[Any, Any],
        cluster: Cluster,
        images: Any = None,
        phase: Phase | None = None,
        has_features: bool = False,
    ) -> None:
        """images: the device cache that blocks index, see `put_on_devices`; None if blocks contain images.

        phase: determines the trained weights; by default the first phase. has_features: whether blocks
        contain features of the frozen backbone instead of images.
        """
        self.phase, self.has_features = phase or learner.phases[0], has_features
        self.learner, self.images = learner, images
        self.objective = get_objective(spec.data.labels)
        self.augment: AugmentSpec = spec.augment
        self.clip_norm = spec.optimizer.clip_norm
        self.label_smoothing = spec.train.label_smoothing
        self.seed = spec.seed
        self.class_weights = tf.constant(class_weights, tf.float32)
        self.strategy = cluster.strategy
        self.replicas = cluster.strategy.num_replicas_in_sync
        # XLA compiles for fixed shapes, so it compiles the single step and not the loop of variable length.
        self.uses_xla = _uses_xla(spec, cluster)
        self._step_function = self._compile_step() if self.uses_xla else self._step
        self.local_replicas = self.replicas // cluster.process_count
        self._compiled: dict[tuple[int, ...], Callable[..., tf.Tensor]] = {}

    def run(self, block: BatchBlock, view: EpochView) -> list[Sums]:
        """Run the steps of `block` on images of the size and crop of `view`; return the sums of each step."""
        shape = (*view, block.labels.shape[1], block.global_rows)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(view, block)
        first_step = tf.constant(block.first_step, tf.int64)
        mirrored = np.zeros(block.positions.shape, bool) if block.is_mirrored is None else block.is_mirrored
        arrays = (block.images, block.labels, block.positions, mirrored)
        sums = self._compiled[shape](*map(tf.constant, arrays), first_step)
        # Not added up here: the caller's total does not depend on the division into blocks.
        return list(itertools.starmap(Sums, sums.numpy().astype(float).tolist()))

    def _compile_step(self) -> Callable[..., tf.Tensor]:
        return tf.function(self._step, jit_compile=True, autograph=False)

    def _compile(self, view: EpochView, block: BatchBlock) -> Callable[..., tf.Tensor]:
        """Return the steps as one graph, in which only the number of steps is variable.

        The number of rows is fixed: with a variable one a step on a CPU took 5% longer. The short last batch
        of an epoch needs another compilation.
        """
        signature = [
            tf.TensorSpec([None, *block.images.shape[1:]], block.images.dtype),
            tf.TensorSpec([None, *block.labels.shape[1:]], tf.int32),
            tf.TensorSpec([None, *block.positions.shape[1:]], tf.int32),
            tf.TensorSpec([None, *block.positions.shape[1:]], tf.bool),
            tf.TensorSpec([], tf.int64),
        ]

        def run_block(
            images: tf.Tensor,
            labels: tf.Tensor,
            positions: tf.Tensor,
            mirrored: tf.Tensor,
            first_step: tf.Tensor,
        ) -> tf.Tensor:
            def do_step(index: tf.Tensor, sums: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
                step = first_step + tf.cast(index, tf.int64)
                batch = (images[index], labels[index], positions[index], mirrored[index], step, self.images)
                results = self.strategy.run(self._replica_step, args=(*batch, block.global_rows, view))
                # They are equal on all replicas.
                sums = sums.write(index, self.strategy.experimental_local_results(results)[0])
                if self.learner.average is not None:
                    self.learner.average.update(step - self.phase.first_step, self.phase.changing)
                return index + 1, sums

            steps = tf.shape(labels)[0]
            sums = tf.TensorArray(tf.float32, size=steps, element_shape=[3])
            _, sums = tf.while_loop(lambda index, _: index < steps, do_step, (tf.constant(0), sums))
            return sums.stack()

        # Autograph would double the tracing time, and there is nothing to convert.
        return tf.function(run_block, input_signature=signature, autograph=False)

    def _replica_step(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        positions: tf.Tensor,
        mirrored: tf.Tensor,
        step: tf.Tensor,
        cached_images: tf.Tensor | None,
        count: int,
        view: EpochView,
    ) -> tf.Tensor:
        has_rows = (images.shape[0] + 1) // 2 >= self.local_replicas
        images, labels, positions, mirrored = self._take_share(images, labels, positions, mirrored)
        weight: float | tf.Tensor = 1.0
        if not has_rows:
            *rows, weight = _pad_empty(images, labels, positions, mirrored)
            images, labels, positions, mirrored = rows
        if cached_images is not None:
            images = tf.gather(cached_images, images)
        return self._step_function(images, labels, positions, mirrored, step, count, view, weight)

    def _take_share(self, *batches: tf.Tensor) -> tuple[tf.Tensor, ...]:
        if self.local_replicas == 1:
            return batches
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group % self.local_replicas
        return replica_share(replica, self.local_replicas, batches)

    def _step(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        positions: tf.Tensor,
        mirrored: tf.Tensor,
        step: tf.Tensor,
        count: int,
        view: EpochView,
        weight: float | tf.Tensor = 1.0,
    ) -> tf.Tensor:
        """Run one step on this replica's share of a global batch of `count` rows.

        weight: 0 if the rows are only padding of an empty share. Returns [loss sum, hits, images] over all
        replicas.
        """
        inputs, partners, shares = self._augment(images, positions, mirrored, step, count, view)
        variables = self.phase.weights
        with tf.GradientTape() as tape, of_rows(BatchRows(step, positions, tf.constant(count), weight)):
            logits = self._logits(inputs)
            losses = self._losses(labels, logits)
            if partners is not None and shares is not None:
                losses *= shares
                losses += (1.0 - shares) * self._losses(tf.gather(labels, partners), logits)
            # Divided by the global batch, because the gradients of the replicas are summed.
            loss = weight * tf.reduce_sum(losses) / count
        gradients = tape.gradient(loss, [weight.value for weight in variables])
        hits = self.objective.hits(labels, logits)
        sums = [tf.reduce_sum(losses), tf.reduce_sum(tf.cast(hits, tf.float32))]
        sums = weight * tf.stack([*sums, tf.cast(tf.shape(labels)[0], tf.float32)])
        if self.replicas > 1:
            replica = tf.distribute.get_replica_context()
            # One all-reduce for all tensors.
            *gradients, sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, sums])
        if self.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        self.phase.apply(gradients)
        return sums

    def _augment(
        self,
        images: tf.Tensor,
        positions: tf.Tensor,
        mirrored: tf.Tensor,
        step: tf.Tensor,
        count: int,
        view: EpochView,
    ) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]:
        """Return the network's inputs; with mixup and CutMix also each row's partner and own share."""
        if self.has_features:
            return images, None, None
        numbers = tf.gather(draw_numbers(self.seed + _AUGMENT_STREAM, step, count), positions)
        pixels = augment_images(images, numbers, self.augment, view, mirrored)
        if not (self.augment.mixup or self.augment.cutmix):
            return pixels, None, None
        mixed: tuple[tf.Tensor, tf.Tensor, tf.Tensor] = mix_images(
            pixels, numbers[:, MIX_DRAWS], self.augment
        )
        return mixed

    def _logits(self, inputs: tf.Tensor) -> tf.Tensor:
        return (
            get_head(self.learner.model)(inputs, training=True)
            if self.has_features
            else self.phase.forward(inputs)
        )

    def _losses(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return the loss of each image for `labels`, float32 [batch]."""
        return self.objective.losses(labels, logits, self.class_weights, self.label_smoothing)


def _uses_xla(spec: RunSpec, cluster: Cluster) -> bool:
    """Return whether XLA compiles the step, which it cannot with rotation or several replicas.

    Raises UsageError if the spec requires XLA with several replicas, or rotation on a TPU.
    """
    replicas = cluster.strategy.num_replicas_in_sync
    if spec.train.xla is True and replicas > 1:
        raise UsageError(
            "XLA cannot compile a step with several devices.",
            "Set train.xla to auto or false.",
            received=f"{replicas} devices",
        )
    if cluster.device_kind == "TPU" and spec.augment.rotate_degrees:
        raise UsageError(
            "A TPU cannot rotate images.",
            "Set augment.rotate_degrees to 0.",
            received=f"{spec.augment.rotate_degrees:g}",
        )
    return choose_xla(spec.train.xla, cluster) and replicas == 1 and not spec.augment.rotate_degrees


def replica_share(
    replica: int | tf.Tensor, replicas: int, batches: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, ...]:
    """Return a replica's part of this host's rows of each batch; pairs for mixup stay together."""
    rows = batches[0].shape[0]
    if rows % (2 * replicas) == 0:
        # Parts of one static size, which XLA requires on a TPU.
        parts = [replicas, rows // replicas]
        return tuple(tf.gather(tf.reshape(batch, [*parts, *batch.shape[1:]]), replica) for batch in batches)
    pairs = (rows + 1) // 2
    first, end = (2 * ((replica + offset) * pairs // replicas) for offset in (0, 1))
    return tuple(batch[first:end] for batch in batches)


def _pad_empty(*batches: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Return `batches` with at least one row, and the weight of the rows: 0 if they are only padding.

    A short last batch may have fewer rows than there are replicas, and for zero rows a convolution returns
    the shape of its input (oneDNN, TensorFlow 2.21).
    """
    missing = tf.cast(tf.equal(tf.shape(batches[0])[0], 0), tf.int32)
    padded = [tf.pad(batch, [[0, missing], *([[0, 0]] * (batch.shape.rank - 1))]) for batch in batches]
    return *padded, 1.0 - tf.cast(missing, tf.float32)


def class_weights(
    choice: str | dict[str, float],
    class_names: tuple[str, ...],
    counts: np.ndarray[Any, Any],
    objective: Objective = SINGLE,
    images: int | None = None,
) -> np.ndarray[Any, Any]:
    """Return the weight of each class in the loss, float32 [classes].

    counts: int64 [classes], the number of training images of each class. images: the number of all training
    images; by default the sum of `counts`. 'balanced' uses `objective.balance`. A mapping assigns weights by
    class name, 1 for names that it does not contain.
    """
    if choice == "none":
        return np.ones(len(class_names), np.float32)
    if choice == "balanced":
        return objective.balance(counts, int(counts.sum()) if images is None else images).astype(np.float32)
    weights: dict[str, float] = by_normalized(dict(choice))  # type: ignore[arg-type]
    return np.array([weights.get(normalized(name), 1.0) for name in class_names], np.float32)
